"""Recorded demonstrations of an arm without a simulator: targets in degrees, two sentences, and a recipe for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lightwam.config.recipes import point
from lightwam.config.schema import CodecConfig, HeldOutConfig, Recipe
from lightwam.data.lerobot.writer import LeRobotWriter

NAMES = ("pan.pos", "lift.pos", "gripper.pos")
SENTENCES = ("put the cube on the left", "put the cube on the right")
FPS, STEPS, EPISODES = 10, 24, 8


def targets(episode: int) -> np.ndarray:
    """The recorded actions of an episode, (STEPS, 3): it turns to a side, goes down, and opens the gripper."""
    share, side = np.linspace(0, 1, STEPS), -1 if episode % 2 == 0 else 1
    pan, lift = side * (30 + episode) * share**2, -20 * np.sin(np.pi * share)
    return np.stack([pan, lift, np.where(share > 0.7, 100, 0)], 1).astype(np.float32)


def picture(state: np.ndarray) -> np.ndarray:
    """A block where the arm is, and the gripper's opening as its brightness: uint8 (32, 32, 3)."""
    image = np.full((32, 32, 3), 40, np.uint8)
    column, row = int(np.clip(16 + state[0] / 3, 4, 28)), int(np.clip(8 - state[1] / 2, 4, 28))
    image[row - 3 : row + 3, column - 3 : column + 3] = (220, 60 + state[2], 40)
    return image


def write_dataset(root: Path) -> Path:
    """Write EPISODES demonstrations; the state follows its target a step later."""
    with LeRobotWriter(root, FPS, "toy_arm", {"front": (32, 32)}, NAMES, NAMES) as writer:
        for episode in range(EPISODES):
            action = targets(episode)
            state = np.concatenate([action[:1], action[:-1]])
            clip = np.stack([picture(row) for row in state])
            writer.add_episode({"front": clip}, state, action, SENTENCES[episode % 2])
    return root


def arm_recipe() -> Recipe:
    """The point recipe's model on these data: relative joints, an absolute gripper, no simulator."""
    base = point()
    place = replace(base.codec.places[0], camera="front")
    codec = CodecConfig(canvas=(32, 32), places=(place,), video_stride=2, relative_action_dims=(0, 1))
    return replace(
        base,
        name="arm",
        model=replace(base.model, state_dim=3, action_dim=3),
        codec=codec,
        sim=None,
        collect=None,
        train=replace(base.train, steps=20, batch_size=8, warmup_steps=2, log_every=2, save_every=10, ema_decay=0.9),
        eval=replace(base.eval, replan=4),
        held_out=HeldOutConfig(share=0.25),
        notes="",
    )
