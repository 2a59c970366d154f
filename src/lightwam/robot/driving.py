"""The loop that drives a robot by a policy's chunks: at the data's rate, within its limits, under a person's keys.

It knows neither the policy nor the robot: chunks come from a `ChunkRequester`, of a policy in this process or of a
server, and the robot is a `RobotDevice`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightwam.errors import DatasetError, LightwamError
from lightwam.robot.background import ChunkRequester
from lightwam.robot.chunks import Crossfade
from lightwam.robot.clock import Clock, Pace, WallClock
from lightwam.robot.connecting import ask, connect
from lightwam.robot.device import (
    CameraWatch,
    RobotDevice,
    Teleoperator,
    camera_pictures,
    camera_sizes,
    joint_numbers,
)
from lightwam.robot.drive_settings import DriveResult, DriveSettings, EpisodeRecorder
from lightwam.robot.errors import RobotError
from lightwam.robot.history import History
from lightwam.robot.limits import Limits, RobotProfile
from lightwam.robot.player import ChunkPlayer, Play
from lightwam.robot.startup import check_device, check_pose, first_chunk, sentence_note
from lightwam.robot.terminal import DISCARD_KEY, PAUSE_KEY, STOP_KEYS, TAKE_OVER_KEY, Operator, StopSignals, Unattended

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
    """Drive a robot until the time is over, a key, a signal or an error; it is held, then disconnected, in every case.

    Chunks are asked for with {"frames": camera -> picture, "state": (P,), "instruction": task}. Keys: q or Esc stops,
    space holds and continues, t hands over to the teleoperator and back, x stops without saving the recording.

    RobotError before anything moves if the robot does not fit the `profile` or its pose is outside the data; later
    if it fails, a camera is lost, or no chunk arrives in time. ConfigError for impossible settings or ranges. The
    policy's own errors are raised unchanged, and the recorder's, when the robot was held or has returned.
    """
    settings, operator, clock = settings or DriveSettings(), operator or Unattended(), clock or WallClock()
    check_device(profile, device, teleoperator)
    devices: list[RobotDevice | Teleoperator] = [device, *([teleoperator] if teleoperator is not None else [])]
    loop = _Loop(device, requester, profile, task, settings, teleoperator, recorder, operator, clock)
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        stack.callback(requester.close)
        stack.callback(loop.discard)
        for each in devices:
            connect(each, stack, operator)
        signals.interrupts = False
        with loop.held_after_errors():
            loop.start(signals)
            loop.run(signals)
            loop.hold()
        loop.finish()
        if loop.is_over and settings.return_to_start:
            with loop.held_after_errors():
                loop.return_to_start(signals)
        signals.interrupts = True
        loop.release()
        if loop.error is not None:
            raise loop.error
        return loop.result


@dataclass(eq=False)
class _Loop:
    """One drive of a robot; made before it is connected, as settings or ranges may be refused."""

    device: RobotDevice
    requester: ChunkRequester
    profile: RobotProfile
    task: str
    settings: DriveSettings
    teleoperator: Teleoperator | None
    recorder: EpisodeRecorder | None
    """None when the recording is saved"""
    operator: Operator
    clock: Clock
    result: DriveResult = field(default_factory=DriveResult)
    error: Exception | None = None
    """the first error, raised when the robot is released"""
    limited: Counter[str] = field(default_factory=Counter)
    is_over: bool = False
    """the time is over"""
    is_paused: bool = False
    by_person: bool = False
    did_hold: bool = False
    """the command of this step is to stand still"""
    held_since: float | None = None
    """when the policy began to leave the robot without an action"""

    def __post_init__(self) -> None:
        profile, settings = self.profile, self.settings
        self.limits, self.watch = Limits(profile), CameraWatch(settings.frozen_seconds)
        self.history = History(settings.n_obs_steps)
        self.start_pose = self.last = np.full(len(profile.action_names), np.nan, np.float32)
        """last: the command sent last, NaN where none is known"""
        sizes = camera_sizes(self.device)
        self.camera_sizes = {name: sizes[name] for name in profile.cameras}
        age = max(1, round(settings.max_age_seconds * profile.fps))
        grippers = tuple(i for i, name in enumerate(profile.action_names) if "gripper" in name)
        play = Play(settings.replan, Crossfade(settings.blend), switch_dims=grippers, max_age_steps=age)
        self.player = ChunkPlayer(self.requester, play, self._still)

    @property
    def _motions(self) -> list[int]:
        return list(self.profile.motion_dims)

    def _still(self, _last: np.ndarray | None) -> np.ndarray:
        """Return the command to stand still: no motion, and the targets sent last, which may be NaN."""
        self.did_hold = True
        still = self.last.copy()
        still[self._motions] = 0
        return still

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return pictures and state (P,)."""
        values = ask("read", self.device.get_observation)
        state = joint_numbers(values, self.profile.state_names, "state")
        frames = camera_pictures(values, self.camera_sizes)
        self.history.add(frames, state)
        return frames, state

    def start(self, signals: StopSignals) -> None:
        """Check pose and sentence, and wait for the policy's first answer; a key or a signal stops it."""
        frames, state = self.read()
        if not self.settings.any_pose:
            check_pose(self.profile, state)
        pose = dict(zip(self.profile.state_names, state.tolist(), strict=True))
        self.start_pose = np.array([pose.get(name, np.nan) for name in self.profile.action_names], np.float32)
        self.start_pose[self._motions] = 0
        self.last = self.start_pose.copy()
        say = self.operator.say
        if note := sentence_note(self.profile, self.task):
            say(note)
        say("\n".join([f"limits, from the training data at {self.profile.fps:g} steps/s:", *self.limits.lines()]))
        names = self.profile.action_names
        if unknown := [name for name, at in zip(names, self.last, strict=True) if not np.isfinite(at)]:
            say(f"note: no measured position of {', '.join(unknown)}: the first command's step has no limit")
        began, seconds = self.clock.now(), self.settings.first_chunk_seconds
        observation, stopped = self._observation(frames, state), lambda: self._is_stopped(signals)
        chunk = first_chunk(self.requester, observation, self.profile, seconds, self.clock, stopped)
        if chunk is not None:
            length = f"{len(chunk)} steps ({len(chunk) / self.profile.fps:.2f} s)"
            say(f"first answer: {length} after {self.clock.now() - began:.2f} s")

    def _observation(self, frames: Mapping[str, np.ndarray], state: np.ndarray) -> dict[str, Any]:
        copies = {name: picture.copy() for name, picture in frames.items()}  # sent while the robot moves on
        seen = {"frames": copies, "state": state, "instruction": self.task}
        return seen | self.history.fields(self.task)

    def _is_stopped(self, signals: StopSignals) -> bool:
        """Obey a signal or a key; return whether the drive has ended."""
        if signals.received:
            self.result.reason = "stopped by a signal"
        else:
            self._obey(self.operator.key())
        return bool(self.result.reason)

    def run(self, signals: StopSignals) -> None:
        """Make control steps until the end; sets the result's reason."""
        began, shown = self.clock.now(), -DRY_EVERY_SECONDS
        pace = Pace(self.profile.fps, self.clock)
        while not self.result.reason:
            passed = self.clock.now() - began
            self.result.seconds, self.result.late_steps = passed, pace.num_late
            if passed >= self.settings.seconds and not signals.received:
                self.result.reason, self.is_over = "the time is over", True
            if self.is_over or self._is_stopped(signals):
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
            self._begin_anew()
        elif key == TAKE_OVER_KEY and self.teleoperator is None:
            self.operator.say("there is no teleoperator to hand over to (--teleop)")
        elif key == TAKE_OVER_KEY:
            self.by_person, self.is_paused = not self.by_person, False
            self.operator.say("the teleoperator drives; t hands back" if self.by_person else "the policy drives")
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Forget the chunks, which are of before, and since when the policy had none."""
        self.player.reset()
        self.held_since = None

    def _wanted(self, frames: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """Return the command (A,) of this step before the limits; RobotError after too long without a chunk."""
        self.did_hold = False
        if self.by_person and self.teleoperator is not None:
            action = ask("read", self.teleoperator.get_action)
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
        if self.did_hold and not np.isfinite(wanted).all():  # no command is known yet, so none is sent
            return
        allowed, dims = self.limits.apply(wanted, self.last, in_range=not self.by_person and not self.did_hold)
        self.limited.update(self.profile.action_names[dim] for dim in dims)
        self.last = allowed if self.settings.dry else self._send(allowed)
        if self.is_paused:
            return
        self.result.corrected += self.by_person
        if self.recorder is not None and not self.settings.dry:
            with _disk_errors():
                self.recorder.add(frames, state, self.last, corrected=self.by_person)

    def _send(self, command: np.ndarray) -> np.ndarray:
        """Send a command and return what the robot made of it."""
        names = self.profile.action_names
        numbers = dict(zip(names, map(float, command), strict=True))
        answer = ask("commanded", self.device.send_action, numbers)
        self.result.sent += 1
        if answer is None:
            return joint_numbers(numbers, names, "sent action")
        if not isinstance(answer, Mapping):
            what, got = "the robot must return the action that it sent, or None", type(answer).__name__
            raise RobotError(what, got=got, expected="a map from joint to number")
        return joint_numbers({**numbers, **answer}, names, "sent action")

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
        except Exception as error:  # also a robot's of the user's: the person must be asked before it is released
            got = error.got if isinstance(error, LightwamError) else error
            self.operator.say(f"the robot did not take the command to stand still: {got}")

    @contextlib.contextmanager
    def held_after_errors(self) -> Iterator[None]:
        """Hold the robot after an error inside the context, and keep the error."""
        try:
            yield
        except Exception as error:  # raised by `drive` when the robot is released
            self.hold()
            first = str(error).partition("\n")[0] or type(error).__name__
            self.result.reason = f"stopped by an error: {first}"
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Keep the first error, and say a later one."""
        if self.error is None:
            self.error = error
        elif str(error) != str(self.error):
            self.operator.say(str(error))

    def finish(self) -> None:
        """Complete the result, and save the recording."""
        result, recorder, self.recorder = self.result, self.recorder, None  # saved once, also if that fails
        result.limited, result.player = dict(self.limited), self.player.stats()
        if recorder is None:
            return
        try:
            with _disk_errors():
                if not result.keep:
                    return recorder.discard()
                extra = {"ended": result.reason, "corrected_steps": result.corrected}
                result.recorded = recorder.save(self.task, extra)
        except Exception as error:  # raised by `drive` when the robot has returned and is released
            self._fail(error)
        if self.error is not None and result.recorded:  # the result is not shown
            self.operator.say(result.recorded)

    def discard(self) -> None:
        """Forget a recording that was not saved, as nothing was driven or a second signal interrupted."""
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.discard()

    def release(self) -> None:
        """Wait until the robot may lose its torque, if it was moved."""
        if self.result.sent:
            why = f"{self.result.reason}: {self.result.steps} steps" if self.error is None else str(self.error)
            self.operator.wait_to_release(why)

    def return_to_start(self, signals: StopSignals) -> None:
        """Go straight to the first pose in RETURN_SECONDS, or slower, within the limits; a key or a signal stops it."""
        if self.settings.dry or not self.result.sent or not np.isfinite(self.start_pose).all():
            return
        goal, _ = self.limits.apply(self.start_pose, np.full_like(self.start_pose, np.nan))
        way, pace = goal - self._still(None), Pace(self.profile.fps, self.clock)
        step = np.array(self.profile.action_step, np.float32)
        step[self._motions] = np.inf
        least = RETURN_SECONDS * self.profile.fps
        count = int(np.clip(np.ceil((np.abs(way)[step > 0] / step[step > 0]).max(initial=0.0)), least, 20 * least))
        for number in range(1, int(20 * least) + 1 if way.any() else 1):
            if signals.received or self.operator.key():
                return
            before, share = self.last, np.float32(min(1.0, number / count))
            allowed, _ = self.limits.apply(goal - (1 - share) * way, before)
            self.last = self._send(allowed)
            pace.wait()
            is_there = (np.abs(self.last - goal) <= 1e-4 * np.maximum(np.abs(way), np.abs(goal))).all()
            # a joint that never moved in the data has no step, and stays
            if number >= count and (is_there or np.array_equal(self.last, before)):
                return


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Convert an OSError of a recorder."""
    try:
        yield
    except OSError as error:
        what, step = "the recording cannot be written", "free space, or --record elsewhere"
        raise DatasetError(what, got=error, next_step=step) from error
