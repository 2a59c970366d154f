"""The paper's experiments: Light-WAM on LIBERO's four suites and on RoboTwin 2.0, with every deviation named."""

from __future__ import annotations

from dataclasses import replace

from lightwam.config.robotwin_protocols import FIRST_EVALUATION_SEED
from lightwam.config.robotwin_tasks import CAMERAS, STEP_LIMITS
from lightwam.config.schema import (
    BackboneConfig,
    CameraPlace,
    CodecConfig,
    CollectConfig,
    EvalConfig,
    ExpertConfig,
    FlowConfig,
    ModelConfig,
    Recipe,
    SimConfig,
    TrainConfig,
    Umt5Config,
    WanVaeConfig,
)

PAPER_PROMPT = "A video recorded from a robot's point of view executing the following instruction: {task}"
WAN = "Wan-AI/Wan2.1-T2V-1.3B"
LIBERO_SUITES = {"libero_spatial": 60_000, "libero_object": 12_500, "libero_goal": 60_000, "libero_10": 80_000}
"""suite -> training steps of the paper"""


def paper_libero_model() -> ModelConfig:
    """Return the sizes of the Light-WAM published for LIBERO.

    Its evaluation executes 10 of 32 steps, so 10 are supervised here; its own script supervises 8, a combination that
    `checks.check_recipe` refuses.
    """
    return ModelConfig(BackboneConfig(), ExpertConfig(), FlowConfig(), state_dim=8, action_dim=7, supervised_prefix=10)


def libero_spatial() -> Recipe:
    """LIBERO-Spatial as in the paper, 10 tasks; deviations: see libero-10."""
    return _libero("libero-spatial", ("libero_spatial",))


def libero_object() -> Recipe:
    """LIBERO-Object as in the paper, 10 tasks; deviations: see libero-10."""
    return _libero("libero-object", ("libero_object",))


def libero_goal() -> Recipe:
    """LIBERO-Goal as in the paper, 10 tasks; deviations: see libero-10."""
    return _libero("libero-goal", ("libero_goal",))


def libero_10() -> Recipe:
    """LIBERO-10 (Long) as in the paper, 10 tasks: one policy for the suite, 80,000 steps of 64.

    Deviations: the first 10 actions of a chunk are supervised and executed, while the published script supervises 8 and
    its evaluation executes 10; the latent cache averages the later frames in float32 and then rounds to bfloat16, while
    the publication averages rounded ones.
    """
    return _libero("libero-10", ("libero_10",))


def libero_joint() -> Recipe:
    """One policy for all four LIBERO suites, 40 tasks.

    Deviations: libero-10's; the paper trains one policy per suite, 212,500 steps in all, this one trains for 160,000.
    """
    return _libero("libero-joint", tuple(LIBERO_SUITES), steps=160_000)


def libero_10_24gb() -> Recipe:
    """libero-10 on one GPU of 24 GB: 64 samples a step, 4 at a time.

    `lightwam show libero-10-24gb` estimates the memory; `--train.checkpointing` helps on smaller cards. Deviations:
    libero-10's; the gradients of 16 micro batches are added up, in float32.
    """
    base = libero_10()
    return replace(base, name="libero-10-24gb", train=replace(base.train, micro_batch=4))


def _libero(name: str, suites: tuple[str, ...], steps: int | None = None) -> Recipe:
    """Two cameras side by side, end-effector state, delta actions."""
    size, cameras = 224, ("agentview", "wrist")
    places = tuple(CameraPlace(camera, 0, i * size, size, size) for i, camera in enumerate(cameras))
    tasks = tuple(f"{suite}/{i}" for suite in suites for i in range(10))
    max_steps = 700 if "libero_10" in suites else 400
    return Recipe(
        name=name,
        model=paper_libero_model(),
        codec=CodecConfig(canvas=(size, 2 * size), places=places, delta_action_dims=(0, 1, 2, 3, 4, 5)),
        latents=WanVaeConfig(),
        text=Umt5Config(),
        sim=SimConfig("libero", tasks, cameras, height=256, width=256, max_steps=max_steps, protocol="light-wam"),
        collect=CollectConfig(demos_per_task=50, demos_per_turn=10),
        train=_paper_training(steps or LIBERO_SUITES[suites[0]], batch_size=64),
        eval=EvalConfig(trials=50, replan=10),
        prompt=PAPER_PROMPT,
        weights=WAN,
    )


def robotwin() -> Recipe:
    """RoboTwin 2.0 as in the paper: 50 tasks, one policy, absolute joint positions, 460,000 steps of 128.

    Encoders, prompt and model are LIBERO's; state and action are z-scored; 24 of 32 actions are supervised and
    executed. Published scores come from 50 clean and 500 randomised demonstrations of every task, or from the clean
    ones alone (docs/robotwin_data.md).
    Deviations: the latent cache averages before it rounds (see libero-10); gradients of micro batches of 16 are added
    up, the paper's four GPUs had 32 samples each in one pass; pictures go from RoboTwin's 240x320 to the canvas
    directly, the published data had been enlarged to 480x640 before; an episode has one of its sentences.
    """
    places = (
        CameraPlace("head_camera", 0, 0, 256, 320),
        CameraPlace("left_camera", 256, 0, 128, 160),
        CameraPlace("right_camera", 256, 160, 128, 160),
    )
    return replace(
        libero_10(),
        name="robotwin",
        model=replace(paper_libero_model(), state_dim=14, action_dim=14, supervised_prefix=24),
        codec=CodecConfig(canvas=(384, 320), places=places, state_norm="z_score", action_norm="z_score"),
        sim=SimConfig(
            "robotwin", tuple(STEP_LIMITS), CAMERAS, 240, 320, max(STEP_LIMITS.values()), protocol="robotwin-2026-06"
        ),
        collect=CollectConfig(demos_per_task=50),
        train=_paper_training(460_000, batch_size=128),
        eval=EvalConfig(trials=100, replan=24, first_seed=FIRST_EVALUATION_SEED),
    )


def _paper_training(steps: int, batch_size: int) -> TrainConfig:
    """Return the paper's training; TrainConfig's defaults are its other settings.

    Each of the paper's four GPUs had 16 of LIBERO's 64 samples: the micro batch.
    """
    return TrainConfig(
        steps=steps, batch_size=batch_size, micro_batch=16, precision="bfloat16", log_every=50, save_every=2500
    )
