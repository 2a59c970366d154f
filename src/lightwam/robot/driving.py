"""The loop that drives a robot by a policy's chunks: at the data's rate, within its limits, under a person's keys.

It knows neither the policy nor the robot: chunks come from a `ChunkRequester`, of a policy in this process or of a
server, and the robot is a `RobotDevice`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from lightwam.errors import LightwamError
from lightwam.robot.background import ChunkRequester
from lightwam.robot.chunks import Crossfade
from lightwam.robot.clock import Clock, Pace, WallClock
from lightwam.robot.device import CameraWatch, RobotDevice, Teleoperator, camera_pictures, joint_numbers
from lightwam.robot.drive_settings import DriveResult, DriveSettings, EpisodeRecorder
from lightwam.robot.errors import RobotError
from lightwam.robot.limits import Limits, RobotProfile
from lightwam.robot.player import ChunkPlayer, Play
from lightwam.robot.startup import check_device, check_pose, first_chunk, sentence_note
from lightwam.robot.terminal import DISCARD_KEY, PAUSE_KEY, STOP_KEYS, TAKE_OVER_KEY, Operator, StopSignals, Unattended

Value = TypeVar("Value")
RETURN_SECONDS = 3.0
"""time for the way back to the first pose"""
DRY_EVERY_SECONDS = 1.0


def drive(
    device: RobotDevice,
    requester: ChunkRequester,
    profile: RobotProfile,
    task: str,
    settings: DriveSettings | None = None,
    *,
    teleoperator: Teleoperator | None = None,
    recorder: EpisodeRecorder | None = None,
    operator: Operator | None = None,
    clock: Clock | None = None,
) -> DriveResult:
    """Drive a robot until the time is over, a key, Ctrl-C or an error; it is held, then disconnected, in every case.

    Chunks are asked for with {"frames": camera -> picture, "state": (P,), "instruction": task}. Keys: q or Esc stops,
    space holds and continues, t hands over to the teleoperator and back, x stops without saving the recording.

    RobotError before anything moves if the robot does not fit the `profile` or its pose is outside the data; later
    if it fails, a camera is lost, or no chunk arrives in time. The policy's own errors are raised unchanged.
    """
    settings, operator, clock = settings or DriveSettings(), operator or Unattended(), clock or WallClock()
    check_device(profile, device, teleoperator)
    devices: list[RobotDevice | Teleoperator] = [device, *([teleoperator] if teleoperator is not None else [])]
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        stack.callback(requester.close)
        for each in devices:
            if not each.is_connected:
                _ask("connected", each.connect)
            stack.callback(_disconnect, each, operator)
        loop = _Loop(device, requester, profile, task, settings, teleoperator, recorder, operator, clock)
        try:
            loop.start()
            loop.run(signals)
            loop.hold()
            loop.finish()
            if loop.is_over and settings.return_to_start:
                loop.return_to_start(signals)
        except Exception as error:
            loop.abort(error)
            signals.restore()
            loop.release(str(error))
            raise
        signals.restore()
        loop.release(f"{loop.result.reason}: {loop.result.steps} steps")
        return loop.result


def _ask(done: str, call: Callable[..., Value], *arguments: Any) -> Value:
    """Call the robot; RobotError for any exception of its own."""
    try:
        return call(*arguments)
    except LightwamError:
        raise
    except Exception as error:
        step = "check cables and power, and that no other program uses the port or the camera"
        got = f"{type(error).__name__}: {error}"
        raise RobotError(f"the robot could not be {done}", got=got, next_step=step) from error


def _disconnect(device: RobotDevice | Teleoperator, operator: Operator) -> None:
    try:
        device.disconnect()
    except Exception as error:  # the others must be disconnected too, and the first error is the one to show
        operator.say(f"could not disconnect: {type(error).__name__}: {error}")


class _Loop:
    """One drive of a connected robot."""

    def __init__(
        self,
        device: RobotDevice,
        requester: ChunkRequester,
        profile: RobotProfile,
        task: str,
        settings: DriveSettings,
        teleoperator: Teleoperator | None,
        recorder: EpisodeRecorder | None,
        operator: Operator,
        clock: Clock,
    ) -> None:
        self.device, self.requester, self.profile, self.task = device, requester, profile, task
        self.settings, self.teleoperator, self.recorder = settings, teleoperator, recorder
        self.operator, self.clock, self.limits = operator, clock, Limits(profile)
        self.result, self.limited = DriveResult(), Counter[str]()
        self.is_over = self.is_paused = self.by_person = self.did_hold = False
        self.start_pose = self.last = np.full(len(profile.action_names), np.nan, np.float32)
        """last: the command sent last, NaN where none is known"""
        self.watch = CameraWatch(settings.frozen_seconds)
        age = max(1, round(settings.max_age_seconds * profile.fps))
        grippers = tuple(i for i, name in enumerate(profile.action_names) if "gripper" in name)
        play = Play(settings.replan, Crossfade(settings.blend), switch_dims=grippers, max_age_steps=age)
        self.player = ChunkPlayer(requester, play, self._still)
        self.held_since: float | None = None

    @property
    def _motions(self) -> tuple[int, ...]:
        return self.profile.motion_dims

    def _still(self, _last: np.ndarray | None) -> np.ndarray:
        """Return the command to stand still: no motion, and the targets sent last, which may be NaN."""
        self.did_hold = True
        still = self.last.copy()
        still[list(self._motions)] = 0
        return still

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return pictures and state (P,)."""
        values = _ask("read", self.device.get_observation)
        frames = camera_pictures(values, tuple(self.profile.cameras))
        return frames, joint_numbers(values, self.profile.state_names, "state")

    def start(self) -> None:
        """Check pose and sentence, and wait for the policy's first answer."""
        frames, state = self.read()
        if not self.settings.any_pose:
            check_pose(self.profile, state)
        pose = dict(zip(self.profile.state_names, state.tolist(), strict=True))
        self.start_pose = np.array([pose.get(name, np.nan) for name in self.profile.action_names], np.float32)
        self.start_pose[list(self._motions)] = 0
        self.last = self.start_pose.copy()
        say = self.operator.say
        if note := sentence_note(self.profile, self.task):
            say(note)
        say("\n".join([f"limits, from the training data at {self.profile.fps:g} steps/s:", *self.limits.lines()]))
        began = self.clock.now()
        observation = self._observation(frames, state)
        seconds = self.settings.first_chunk_seconds
        chunk = first_chunk(self.requester, observation, self.profile, seconds, self.clock)
        say(f"first answer: {len(chunk)} steps ({len(chunk) / self.profile.fps:.2f} s) after {self._since(began)}")

    def _since(self, began: float) -> str:
        return f"{self.clock.now() - began:.2f} s"

    def _observation(self, frames: Mapping[str, np.ndarray], state: np.ndarray) -> dict[str, Any]:
        copies = {name: picture.copy() for name, picture in frames.items()}  # sent while the robot moves on
        return {"frames": copies, "state": state, "instruction": self.task}

    def run(self, signals: StopSignals) -> None:
        """Make control steps until the end; sets the result's reason."""
        began, shown = self.clock.now(), -DRY_EVERY_SECONDS
        pace = Pace(self.profile.fps, self.clock)
        while not self.result.reason:
            passed = self.clock.now() - began
            self.result.seconds, self.result.late_steps = passed, pace.num_late
            if signals.received:
                self.result.reason = "stopped by a signal"
            elif passed >= self.settings.seconds:
                self.result.reason, self.is_over = "the time is over", True
            else:
                self._obey(self.operator.key())
            if self.result.reason:
                return
            frames, state = self.read()
            self.watch.check(frames, self.clock.now())
            wanted = self._wanted(frames, state)
            self._command(frames, state, wanted)
            if self.settings.dry and passed - shown >= DRY_EVERY_SECONDS:
                shown = passed
                self._show(passed, state)
            self.result.steps += 1
            pace.wait()

    def _obey(self, key: str) -> None:
        if key in (*STOP_KEYS, DISCARD_KEY) and key:
            self.result.reason, self.result.keep = "stopped by a key", key != DISCARD_KEY
        elif key == PAUSE_KEY:
            self.is_paused, self.by_person = not self.is_paused, False
            self.operator.say("holding; space continues" if self.is_paused else "the policy drives")
            self.player.reset()
        elif key == TAKE_OVER_KEY and self.teleoperator is None:
            self.operator.say("there is no teleoperator to hand over to (--teleop)")
        elif key == TAKE_OVER_KEY:
            self.by_person, self.is_paused = not self.by_person, False
            self.operator.say("the teleoperator drives; t hands back" if self.by_person else "the policy drives")
            self.player.reset()

    def _wanted(self, frames: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """Return the command (A,) of this step before the limits; RobotError after too long without a chunk."""
        self.did_hold = False
        if self.by_person and self.teleoperator is not None:
            action = _ask("read", self.teleoperator.get_action)
            return joint_numbers(action, self.profile.action_names, "teleoperator's action")
        if self.is_paused:
            return self._still(None)
        wanted = self.player.action(lambda: self._observation(frames, state))
        if not self.did_hold:
            self.held_since = None
            return wanted
        now = self.clock.now()
        self.held_since = now if self.held_since is None else self.held_since
        if now - self.held_since > self.settings.patience_seconds:
            stats = self.player.stats()
            latency = f"answers take {stats.latency_p50_ms:.0f} ms" if stats.latency_p50_ms else "no answer"
            got = stats.last_error or f"{latency}, {stats.late} of them too late to be executed"
            step = "a faster machine, lightwam serve on another one (--server), or --max-age-seconds"
            what = f"the policy must not leave the robot without an action for {self.settings.patience_seconds:g} s"
            raise RobotError(what, got=got, next_step=step)
        return wanted

    def _command(self, frames: Mapping[str, np.ndarray], state: np.ndarray, wanted: np.ndarray) -> None:
        """Limit, send and record a command."""
        if not np.isfinite(wanted).all():  # no command is known yet, so none is sent
            return
        allowed, dims = self.limits.apply(wanted, self.last, in_range=not self.by_person and not self.did_hold)
        self.limited.update(self.profile.action_names[dim] for dim in dims)
        self.last = allowed if self.settings.dry else self._send(allowed)
        if self.is_paused:
            return
        self.result.corrected += self.by_person
        if self.recorder is not None and not self.settings.dry:
            self.recorder.add(frames, state, self.last, corrected=self.by_person)

    def _send(self, command: np.ndarray) -> np.ndarray:
        """Send a command and return what the robot made of it."""
        names = self.profile.action_names
        numbers = dict(zip(names, map(float, command), strict=True))
        answer = _ask("commanded", self.device.send_action, numbers)
        self.result.sent += 1
        return joint_numbers({**numbers, **(answer or {})}, names, "sent action")

    def _show(self, passed: float, state: np.ndarray) -> None:
        at = dict(zip(self.profile.state_names, state.tolist(), strict=True))
        pairs = zip(self.profile.action_names, self.last.tolist(), strict=True)
        words = [f"{name} {at[name]:.4g} -> {to:.4g}" if name in at else f"{name} {to:.4g}" for name, to in pairs]
        rows = ["  ".join(words[first : first + 3]) for first in range(0, len(words), 3)]
        self.operator.say(f"{passed:5.1f} s  would send  " + f"\n{'':21}".join(rows))

    def hold(self) -> None:
        """Command the robot to stand still, once; a failure is only shown, as the robot stops or has failed."""
        still = self._still(None)
        if self.settings.dry or not self.result.sent or not np.isfinite(still).all():
            return
        try:
            self._send(still)
        except LightwamError as error:
            self.operator.say(f"the robot did not take the command to stand still: {error.got}")

    def finish(self) -> None:
        """Complete the result, and save the recording."""
        result, recorder, self.recorder = self.result, self.recorder, None  # saved once, also if that fails
        result.limited, result.player = dict(self.limited), self.player.stats()
        if recorder is not None and result.keep:
            extra = {"ended": result.reason, "corrected_steps": result.corrected}
            result.recorded = recorder.save(self.task, extra)
        elif recorder is not None:
            recorder.discard()

    def abort(self, error: Exception) -> None:
        """Hold the robot after an error, and save the recording."""
        self.hold()
        self.result.reason = (
            f"stopped by an error: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        try:
            self.finish()
        except LightwamError as second:
            self.operator.say(str(second))

    def release(self, why: str) -> None:
        """Wait until the robot may lose its torque, if it was moved."""
        if self.result.sent:
            self.operator.wait_to_release(why)

    def return_to_start(self, signals: StopSignals) -> None:
        """Go straight to the first pose in RETURN_SECONDS, or slower by the largest steps; a key or Ctrl-C stops it."""
        if self.settings.dry or not self.result.sent or not np.isfinite(self.start_pose).all():
            return
        targets = [i for i in range(len(self.last)) if i not in self._motions]
        begin, way, pace = self.last.copy(), self.start_pose - self.last, Pace(self.profile.fps, self.clock)
        steps = np.abs(way[targets]) / np.maximum(np.array(self.profile.action_step)[targets], 1e-6)
        longest = 20 * RETURN_SECONDS * self.profile.fps  # a joint that never moved in the data has no step
        count = int(np.clip(np.ceil(steps.max(initial=0.0)), RETURN_SECONDS * self.profile.fps, longest))
        for step in range(1, count + 1 if np.abs(way[targets]).max(initial=0.0) > 0 else 1):
            if signals.received or self.operator.key():
                return
            self.last = self._send((begin + way * np.float32(step / count)).astype(np.float32))
            pace.wait()
