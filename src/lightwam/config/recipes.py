"""Named experiments, each a function that returns a complete recipe; the paper's are in paper_recipes.py.

No hyperparameter lives anywhere else. A command line overrides single values (`lightwam train demo --train.steps 200`);
the recipe that ran, overrides included, is saved in its run directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from lightwam.config.paper_recipes import (
    libero_10,
    libero_10_24gb,
    libero_goal,
    libero_joint,
    libero_object,
    libero_spatial,
    robotwin,
)
from lightwam.config.schema import (
    BackboneConfig,
    CameraPlace,
    CodecConfig,
    CollectConfig,
    DctConfig,
    EvalConfig,
    ExpertConfig,
    FlowConfig,
    HashedTextConfig,
    ModelConfig,
    Recipe,
    SimConfig,
    TrainConfig,
)
from lightwam.errors import ConfigError, did_you_mean


def demo() -> Recipe:
    """Four Meta-World tasks by one policy, which the sentence tells what to do: a quarter of an hour on 2 CPU cores.

    Two cameras opposite each other give depth; each is cropped to the workspace, so that a target a few pixels wide
    fills a fair part of a token. A control step is three of Meta-World's, which makes demonstrations and chunks short.
    Reaching has more demonstrations than the others, because its goal varies in three dimensions. The width equals the
    number of values in a patch (18 channels, 2x2), the least with which the video head can output any patch; a wider
    model would be trained on fewer samples in the same time.
    """
    text = HashedTextConfig(num_tokens=12, dim=64)
    return Recipe(
        name="demo",
        model=ModelConfig(
            backbone=BackboneConfig(
                width=72,
                ffn_width=144,
                num_heads=3,
                num_blocks=4,
                latent_channels=18,
                text_dim=text.dim,
                taps=(1, 2, 3),
                adapter_width=32,
                lora_rank=0,
                frozen=False,
            ),
            expert=ExpertConfig(num_queries=8, num_pool_heads=8, layer_width=256, trunk_width=384, step_code_dim=64),
            flow=FlowConfig(),
            state_dim=4,
            action_dim=4,
            horizon=8,
            supervised_prefix=8,
            action_loss_weight=5.0,
        ),
        codec=_opposite_cameras(corner4=(28, 50), corner=(24, 32)),
        latents=DctConfig(luma_channels=8, chroma_channels=5),
        text=text,
        sim=SimConfig(
            name="metaworld",
            tasks=("reach", "button-press-topdown", "drawer-open", "window-open"),
            cameras=("corner4", "corner"),
            height=128,
            width=128,
            max_steps=60,
            action_repeat=3,
        ),
        collect=CollectConfig(
            demos_per_task=70,
            more_demos=(("reach", 530),),
            noise_std=0.3,
            noise_probability=0.25,
            wander_steps=8,
            extra_steps=6,
        ),
        train=TrainConfig(
            steps=1900,
            batch_size=64,
            learning_rate=1e-3,
            muon_learning_rate=8e-3,
            warmup_steps=60,
            ema_decay=0.99,
            log_every=20,
            save_every=500,
        ),
        eval=EvalConfig(trials=20, replan=4),
    )


def _opposite_cameras(corner4: tuple[int, int], corner: tuple[int, int]) -> CodecConfig:
    """Two of Meta-World's cameras side by side: of each picture of 128x128 the 64x64 pixels from (top, left)."""
    places = tuple(
        CameraPlace(camera, 0, at, 64, 64, (top / 128, left / 128, (top + 64) / 128, (left + 64) / 128))
        for camera, at, (top, left) in (("corner4", 0, corner4), ("corner", 64, corner))
    )
    return CodecConfig(canvas=(64, 128), places=places, video_stride=2, delta_action_dims=(0, 1, 2))


def mt10() -> Recipe:
    """Meta-World's MT10: ten tasks, one policy; 1.7 hours on one busy CPU core. Results: docs/results/mt10.md.

    The crops contain nearly all positions of hand, object and goal in the ten tasks. Tasks whose goals or objects vary
    most have more demonstrations.
    """
    base = demo()
    tasks = (
        "reach",
        "push",
        "pick-place",
        "door-open",
        "drawer-open",
        "drawer-close",
        "button-press-topdown",
        "peg-insert-side",
        "window-open",
        "window-close",
    )
    backbone = replace(base.model.backbone, width=96, ffn_width=192, num_heads=4)
    return replace(
        base,
        name="mt10",
        model=replace(base.model, backbone=backbone),
        codec=_opposite_cameras(corner4=(32, 42), corner=(28, 36)),
        sim=replace(base.sim, tasks=tasks, max_steps=100),
        collect=replace(
            base.collect,
            demos_per_task=100,
            more_demos=(("reach", 300), ("push", 300), ("pick-place", 300), ("peg-insert-side", 200)),
        ),
        train=replace(base.train, steps=6000, ema_decay=0.999, save_every=1000),
    )


def point() -> Recipe:
    """A dot on a plane, drawn by numpy: every part of lightwam at a toy size, for tests and first steps.

    The picture shows the point and four dots: it takes a thousand demonstrations, a minute of work, to learn that only
    the dot that the sentence names matters.
    """
    latents = DctConfig(luma_channels=4, chroma_channels=2)
    text = HashedTextConfig(num_tokens=8, dim=32)
    return Recipe(
        name="point",
        model=ModelConfig(
            backbone=BackboneConfig(
                width=48,
                ffn_width=96,
                num_heads=2,
                num_blocks=2,
                latent_channels=8,
                text_dim=text.dim,
                time_code_dim=32,
                taps=(0, 1),
                adapter_width=8,
                lora_rank=0,
                frozen=False,
            ),
            expert=ExpertConfig(num_queries=4, num_pool_heads=2, layer_width=48, trunk_width=64, step_code_dim=32),
            flow=FlowConfig(),
            state_dim=2,
            action_dim=2,
            horizon=8,
            supervised_prefix=8,
            action_loss_weight=5.0,
        ),
        codec=CodecConfig(
            canvas=(32, 32),
            places=(CameraPlace("top", top=0, left=0, height=32, width=32),),
            video_stride=2,
            delta_action_dims=(0, 1),
        ),
        latents=latents,
        text=text,
        sim=SimConfig(name="point", tasks=("red", "blue"), cameras=("top",), height=32, width=32, max_steps=40),
        collect=CollectConfig(demos_per_task=1000, noise_std=0.2, extra_steps=4),
        train=TrainConfig(
            steps=2000,
            batch_size=64,
            learning_rate=2e-3,
            muon_learning_rate=1e-2,
            warmup_steps=20,
            ema_decay=0.99,
            log_every=20,
            save_every=500,
        ),
        eval=EvalConfig(trials=5, replan=4, videos_per_task=1),
    )


def libero_object_small() -> Recipe:
    """LIBERO-Object by a compact policy from scratch, on a scripted expert's demonstrations: two hours of a CPU.

    The demo's model, a little wider, with chunks of 0.8 s. Pictures are rendered plainly, both for training and for
    evaluation. Demonstrations begin in new random states, evaluation in the benchmark's own.
    Results: docs/results/libero_small.md.
    """
    base, size = demo(), 64
    agentview = CameraPlace("agentview", 0, 0, size, size, crop=(0.15, 0.03, 0.80, 0.87))
    wrist = CameraPlace("wrist", 0, size, size, size)
    return replace(
        base,
        name="libero-object-small",
        model=replace(
            base.model,
            backbone=replace(base.model.backbone, width=96, ffn_width=192, num_heads=4),
            state_dim=8,
            action_dim=7,
            horizon=16,
            supervised_prefix=16,
        ),
        codec=CodecConfig(
            canvas=(size, 2 * size), places=(agentview, wrist), video_stride=4, delta_action_dims=(0, 1, 2, 3, 4, 5)
        ),
        sim=SimConfig(
            name="libero",
            tasks=tuple(f"libero_object/{i}" for i in range(10)),
            cameras=("agentview", "wrist"),
            height=128,
            width=128,
            max_steps=200,
            protocol="plain",
        ),
        collect=CollectConfig(
            demos_per_task=30, demos_per_turn=10, noise_std=0.15, noise_probability=0.25, extra_steps=5
        ),
        train=replace(base.train, steps=6000, ema_decay=0.999, save_every=1000),
        eval=EvalConfig(trials=10, replan=8),
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "demo": demo,
    "mt10": mt10,
    "point": point,
    "libero-object-small": libero_object_small,
    "libero-spatial": libero_spatial,
    "libero-object": libero_object,
    "libero-goal": libero_goal,
    "libero-10": libero_10,
    "libero-joint": libero_joint,
    "libero-10-24gb": libero_10_24gb,
    "robotwin": robotwin,
}
"""name on the command line -> the recipe"""


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes."""
    return tuple(RECIPES)


def recipe(name: str) -> Recipe:
    """Return the recipe of this name; ConfigError with the nearest names for an unknown one."""
    if name not in RECIPES:
        raise ConfigError("unknown recipe", got=repr(name), next_step=did_you_mean(name, RECIPES))
    return RECIPES[name]()
