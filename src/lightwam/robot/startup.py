"""Checks before a robot moves: names, cameras, pose and sentence must be those of the policy's training data."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import numpy as np

from lightwam.errors import did_you_mean
from lightwam.robot.background import ChunkReceived, ChunkRequester, Disconnected, RequestFailed
from lightwam.robot.clock import Clock
from lightwam.robot.device import RobotDevice, Teleoperator, camera_sizes
from lightwam.robot.errors import RobotError
from lightwam.robot.limits import RobotProfile
from lightwam.robot.player import check_chunk

POSE_MARGIN = 0.1
"""share of a joint's range in the data by which the pose may lie outside of it"""
ASPECT_TOLERANCE = 0.02
POLL_SECONDS = 0.01


def check_device(profile: RobotProfile, device: RobotDevice, teleoperator: Teleoperator | None = None) -> None:
    """Raise RobotError unless the robot has the policy's cameras and joints, and takes exactly its actions.

    A camera's picture must have the same ratio of sides as in the data. Needs no connection. ConfigError for a profile
    that is not consistent.
    """
    features, cameras = device.observation_features, camera_sizes(device)
    _require_names("camera", profile.cameras, cameras, "--camera NAME=INDEX, or --rename DATASET=ROBOT")
    joints = [name for name in features if name not in cameras]
    _require_names("joint of the state", profile.state_names, joints, "--rename DATASET=ROBOT")
    _require_names("joint of the action", profile.action_names, device.action_features, "--rename DATASET=ROBOT")
    if extra := [name for name in device.action_features if name not in profile.action_names]:
        what, step = "the robot takes joints that the policy does not move", "use the robot that recorded the dataset"
        raise RobotError(what, got=", ".join(extra), expected=", ".join(profile.action_names), next_step=step)
    for name, size in profile.cameras.items():
        height, width = cameras[name]
        if size is not None and abs(width / height / (size[1] / size[0]) - 1) > ASPECT_TOLERANCE:
            what, step = "a camera's picture must have the ratio of sides of the dataset's", "see --camera-size"
            got, expected = f"{width}x{height}", f"{size[1]}x{size[0]}, or another size of this ratio"
            raise RobotError(what, where=f"camera {name}", got=got, expected=expected, next_step=step)
    if teleoperator is not None:
        joints = list(teleoperator.action_features)
        _require_names("joint of the teleoperator", profile.action_names, joints, "another --teleop")
    profile.check()


def _require_names(kind: str, wanted: object, present: object, step: str) -> None:
    names, known = list(wanted), list(present)  # type: ignore[call-overload]
    if missing := [name for name in names if name not in known]:
        got, expected = ", ".join(known) or "none", ", ".join(names)
        what = f"the robot lacks a {kind} of the policy: {', '.join(missing)}"
        raise RobotError(what, got=got, expected=expected, next_step=step)


def pose_problems(profile: RobotProfile, state: np.ndarray) -> list[str]:
    """Return a line for each joint whose position is outside its range in the data by more than POSE_MARGIN of it."""
    rows = zip(profile.state_names, state.tolist(), profile.state_low, profile.state_high, strict=True)
    return [
        f"{name} {at:.4g}, in the data {low:.4g} to {high:.4g}"
        for name, at, low, high in rows
        if not low - POSE_MARGIN * (high - low) <= at <= high + POSE_MARGIN * (high - low)
    ]


def check_pose(profile: RobotProfile, state: np.ndarray) -> None:
    """Raise RobotError if a joint is outside its range in the data: another unit, another calibration, or far away."""
    if problems := pose_problems(profile, state):
        what = "the robot's pose must be one that the policy was trained on"
        step = "move it to where recordings began; many joints at once: other units (degrees, -100 to 100) or another "
        step += "calibration; --any-pose drives from here all the same"
        raise RobotError(what, got="; ".join(problems), next_step=step)


def sentence_note(profile: RobotProfile, task: str) -> str:
    """Return a line if the sentence is none of the dataset's; "" if it is, or if they are not known."""
    if task in profile.sentences or not profile.sentences:
        return ""
    near = difflib.get_close_matches(task, profile.sentences, n=1, cutoff=0.0)
    known = did_you_mean(task, profile.sentences) if len(profile.sentences) <= 8 else f"the nearest is {near[0]!r}"
    return f"note: the policy was not trained on this sentence; {known}"


def first_chunk(
    requester: ChunkRequester,
    observation: object,
    profile: RobotProfile,
    seconds: float,
    clock: Clock,
    is_stopped: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """Ask for a chunk and wait for it, before anything moves: (H, A); the first answer of a model is its slowest.

    None when `is_stopped`, which is asked while there is no answer. RobotError after `seconds`; the requester's own
    errors, and WireError if the chunk does not fit the robot.
    """
    end, problem = clock.now() + seconds, ""
    requester.ask(0, observation)
    while clock.now() < end:
        for event in requester.events():
            match event:
                case ChunkReceived(_, actions):
                    return check_chunk(actions, len(profile.action_names), ())
                case RequestFailed(_, error) if error is not None:
                    raise error
                case RequestFailed():
                    requester.ask(0, observation)
                case Disconnected(lost):
                    problem = str(lost)
        if is_stopped():
            return None
        clock.sleep(POLL_SECONDS)
    raise RobotError(f"the policy must answer within {seconds:g} s", got=problem or "no answer")
