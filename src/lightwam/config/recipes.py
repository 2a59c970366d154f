"""Named experiments, each a function that returns a complete recipe; the paper's are in paper_recipes.py.

No hyperparameter lives anywhere else. A recipe file (recipe_files.py) changes some values of a named recipe, and a
command line single ones (`lightwam train demo --train.steps 200`); the recipe that ran is saved in its run directory.
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
from lightwam.config.robotwin_protocols import BOX_TASKS, FIRST_EVALUATION_SEED
from lightwam.config.robotwin_tasks import CAMERAS, JOINT_NAMES, STEP_LIMITS
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
    PcaConfig,
    Recipe,
    SimConfig,
    TrainConfig,
)

DCT = DctConfig(luma_channels=8, chroma_channels=5)
"""latents of the recipes whose results were measured before there were fitted ones"""


def demo() -> Recipe:
    """Four Meta-World tasks by one policy, chosen by the instruction: minutes on 2 CPU cores.

    Two cameras opposite each other give depth; each is cropped to the workspace, so that a target a few pixels wide
    fills a fair part of a token. A control step is three of Meta-World's, which makes demonstrations and chunks short.
    Reaching has more demonstrations than the others, because its goal varies in three dimensions. The width equals the
    number of values in a patch (18 channels, 2x2), the least with which the video head can output any patch; a wider
    model would be trained on fewer samples in the same time.
    """
    text = HashedTextConfig(num_tokens=12, dim=64)
    tasks = ("reach", "button-press-topdown", "drawer-open", "window-open")
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
        latents=PcaConfig(channels=18, motion_channels=4),
        text=text,
        sim=SimConfig(
            "metaworld", tasks, cameras=("corner4", "corner"), height=128, width=128, max_steps=60, action_repeat=3
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
            steps=1900, batch_size=64, learning_rate=1e-3, muon_learning_rate=8e-3, warmup_steps=60, ema_decay=0.99
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
    tasks: tuple[str, ...] = ("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close")
    tasks += ("button-press-topdown", "peg-insert-side", "window-open", "window-close")
    more_demos = (("reach", 300), ("push", 300), ("pick-place", 300), ("peg-insert-side", 200))
    backbone = replace(base.model.backbone, width=96, ffn_width=192, num_heads=4)
    return replace(
        base,
        name="mt10",
        latents=DCT,
        model=replace(base.model, backbone=backbone),
        codec=_opposite_cameras(corner4=(32, 42), corner=(28, 36)),
        sim=replace(base.simulation, tasks=tasks, max_steps=100),
        collect=replace(base.demonstrations, demos_per_task=100, more_demos=more_demos),
        train=replace(base.train, steps=6000, ema_decay=0.999, save_every=1000),
    )


def point() -> Recipe:
    """A dot on a plane, drawn by numpy: every part of lightwam at a toy size, for tests and first steps.

    The picture shows the point and four dots: it takes a thousand demonstrations, a minute of work, to learn that only
    the dot that the sentence names matters. What is not set here is as in `demo`.
    """
    base, text = demo(), HashedTextConfig(num_tokens=8, dim=32)
    place = CameraPlace("top", top=0, left=0, height=32, width=32)
    backbone = replace(
        base.model.backbone,
        width=48,
        ffn_width=96,
        num_heads=2,
        num_blocks=2,
        latent_channels=8,
        text_dim=text.dim,
        time_code_dim=32,
        taps=(0, 1),
        adapter_width=8,
    )
    expert = ExpertConfig(num_queries=4, num_pool_heads=2, layer_width=48, trunk_width=64, step_code_dim=32)
    return replace(
        base,
        name="point",
        model=replace(base.model, backbone=backbone, expert=expert, state_dim=2, action_dim=2),
        codec=CodecConfig(canvas=(32, 32), places=(place,), video_stride=2, delta_action_dims=(0, 1)),
        latents=DctConfig(luma_channels=4, chroma_channels=2),
        text=text,
        sim=SimConfig(name="point", tasks=("red", "blue"), cameras=("top",), height=32, width=32, max_steps=40),
        collect=CollectConfig(demos_per_task=1000, noise_std=0.2, extra_steps=4),
        train=replace(base.train, steps=2000, learning_rate=2e-3, muon_learning_rate=1e-2, warmup_steps=20),
        eval=EvalConfig(trials=5, replan=4, videos_per_task=1),
    )


def libero_object_small() -> Recipe:
    """LIBERO-Object by a compact policy from scratch, on a scripted expert's demonstrations: two hours of a CPU.

    The demo's model, a little wider, with chunks of 0.8 s. Pictures are rendered plainly, both for training and for
    evaluation. Demonstrations begin in new random states, evaluation in the benchmark's own.
    Results: docs/results/libero_small.md.
    """
    base, size = demo(), 64
    tasks = tuple(f"libero_object/{i}" for i in range(10))
    backbone = replace(base.model.backbone, width=96, ffn_width=192, num_heads=4)
    agentview = CameraPlace("agentview", 0, 0, size, size, crop=(0.15, 0.03, 0.80, 0.87))
    wrist = CameraPlace("wrist", 0, size, size, size)
    return replace(
        base,
        name="libero-object-small",
        model=replace(base.model, backbone=backbone, state_dim=8, action_dim=7, horizon=16, supervised_prefix=16),
        latents=DCT,
        codec=CodecConfig(
            canvas=(size, 2 * size), places=(agentview, wrist), video_stride=4, delta_action_dims=(0, 1, 2, 3, 4, 5)
        ),
        sim=SimConfig(
            "libero", tasks, cameras=("agentview", "wrist"), height=128, width=128, max_steps=200, protocol="plain"
        ),
        collect=CollectConfig(
            demos_per_task=30, demos_per_turn=10, noise_std=0.15, noise_probability=0.25, extra_steps=5
        ),
        train=replace(base.train, steps=6000, ema_decay=0.999, save_every=1000),
        eval=EvalConfig(trials=10, replan=8),
    )


def so101() -> Recipe:
    """A simulated SO-101 arm puts a cube on the red or the blue plate: two cameras, joint targets 30 times a second.

    What a policy for one's own arm looks like: LeRobot's names and units, whole pictures of 4:3, chunks of one second.
    """
    base, (height, width) = demo(), (96, 128)
    backbone = replace(base.model.backbone, width=96, ffn_width=192, num_heads=4)
    places = tuple(CameraPlace(camera, 0, i * width, height, width) for i, camera in enumerate(("front", "wrist")))
    return replace(
        base,
        name="so101",
        model=replace(base.model, backbone=backbone, state_dim=6, action_dim=6, horizon=32, supervised_prefix=32),
        latents=DCT,
        codec=CodecConfig(canvas=(height, 2 * width), places=places, video_stride=4),
        sim=SimConfig("so101", ("red", "blue"), cameras=("front", "wrist"), height=240, width=320, max_steps=300),
        # a third of a second at a time, as a hand errs: without it no demonstration shows how to return to the cube
        collect=CollectConfig(demos_per_task=25, noise_std=3.0, noise_probability=0.3, noise_steps=10, extra_steps=10),
        train=replace(base.train, steps=2400, ema_decay=0.995, save_every=400),
        eval=EvalConfig(trials=20, replan=24),
    )


def robotwin_blocks_small() -> Recipe:
    """RoboTwin's five box tasks by one compact policy from scratch, chosen by the sentence: a night of a CPU.

    An action spans four of RoboTwin's frames, which makes 90 to 140 decisions of an episode instead of 350 to 550. The
    head camera is cropped to the part of the table where blocks lie. A grasp needs 0.01 rad. So joint targets are
    absolute: with relative ones, errors of the arm's position were not corrected. The expert reads the state itself,
    which makes the next actions more exact (docs/results/robotwin.md). Pictures are not shifted: a pixel is 3 mm.
    """
    base, text, dim, words = demo(), HashedTextConfig(num_tokens=24, dim=64), len(JOINT_NAMES), "plain/no-shadows"
    backbone = replace(base.model.backbone, width=96, ffn_width=192, num_heads=4)
    places = (
        CameraPlace("head_camera", 0, 0, 96, 160, crop=(0.09, 0.0, 0.92, 1.0)),
        CameraPlace("left_camera", 96, 0, 64, 80),
        CameraPlace("right_camera", 96, 80, 64, 80),
    )
    return replace(
        base,
        name="robotwin-blocks-small",
        model=replace(
            base.model,
            backbone=backbone,
            expert=replace(base.model.expert, state_frequencies=6),
            state_dim=dim,
            action_dim=dim,
            horizon=16,
            supervised_prefix=16,
            action_loss="l1",
        ),
        latents=DCT,
        codec=CodecConfig(canvas=(160, 160), places=places, video_stride=4),
        text=text,
        sim=SimConfig("robotwin", BOX_TASKS, CAMERAS, 168, 224, max_steps=240, action_repeat=4, protocol=words),
        # the expert's targets are absolute: the next one takes the arm back to its path
        collect=CollectConfig(
            demos_per_task=40,
            more_demos=(("stack_blocks_two", 160),),
            noise_std=0.03,
            noise_probability=0.3,
            noise_steps=4,
            extra_steps=2,
        ),
        train=replace(base.train, steps=12_000, batch_size=32, ema_decay=0.999, save_every=1000, video_share=0.25),
        eval=EvalConfig(trials=50, replan=4, first_seed=FIRST_EVALUATION_SEED),
    )


def robotwin_blocks_stride_1() -> Recipe:
    """robotwin-blocks-small with the benchmark's own actions and the paper's chunks, to compare with; not yet trained.

    Every single action is executed, 24 of a chunk of 32, so an episode has 350 to 550 decisions instead of 90 to 140. A
    demonstration has four times the frames, and a step reads the same number of pictures.
    """
    base = robotwin_blocks_small()
    most = max(STEP_LIMITS[task] for task in BOX_TASKS)
    return replace(
        base,
        name="robotwin-blocks-stride-1",
        model=replace(base.model, horizon=32, supervised_prefix=32),
        codec=replace(base.codec, video_stride=8),
        sim=replace(base.simulation, action_repeat=1, max_steps=most),
        eval=replace(base.eval, replan=24),
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "demo": demo,
    "mt10": mt10,
    "point": point,
    "libero-object-small": libero_object_small,
    "so101": so101,
    "robotwin-blocks-small": robotwin_blocks_small,
    "robotwin-blocks-stride-1": robotwin_blocks_stride_1,
    "libero-spatial": libero_spatial,
    "libero-object": libero_object,
    "libero-goal": libero_goal,
    "libero-10": libero_10,
    "libero-joint": libero_joint,
    "libero-10-24gb": libero_10_24gb,
    "robotwin": robotwin,
}
"""name on the command line -> the recipe"""
