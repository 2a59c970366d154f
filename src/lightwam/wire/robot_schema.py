"""Robot schemas: the keys of a robot's messages for pictures, state and prompt, and the form of its actions.

Robots' clients differ in little but names, so a schema is data, and a new robot is a file of a dozen lines
(`robot_schemas.read_schema`). `fit_schema` checks a schema against a run before the server starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.errors import ConfigError, WireError, did_you_mean
from lightwam.types import Observation
from lightwam.wire.limits import EncodedPicture, short

KeyPath = tuple[str, ...]
"""keys from the top of a message down; openpi's contain slashes, so they are not joined to one text"""
CAMERA = "{camera}"
"""stands for the camera's name in `RobotSchema.any_camera`"""
EPISODE, STEP, HISTORY = "episode", "step", "history"
"""keys of messages to a policy that acts on several control steps"""
GUIDE = "docs/serving_robots.md shows how to declare a robot in a file"


@dataclass(frozen=True)
class StatePart:
    """A vector of the state."""

    path: KeyPath
    length: int | None = None
    """None: any"""
    row: bool = False
    """the client sends it with shape (1, n)"""


@dataclass(frozen=True)
class ActionPart:
    """The next `length` numbers of an action, which the client expects under `key`."""

    key: str
    length: int


@dataclass(frozen=True)
class Unit:
    """Another unit for a number: the client's value is `scale` times the policy's plus `offset`."""

    dim: int
    scale: float
    offset: float

    def to_client(self, number: Any) -> Any:
        """Convert the policy's number, or an array of them."""
        return number * np.float32(self.scale) + np.float32(self.offset)

    def to_policy(self, number: Any) -> Any:
        """Convert the client's number, or an array of them."""
        return (number - np.float32(self.offset)) / np.float32(self.scale)


@dataclass(frozen=True)
class RobotSchema:
    """The messages of a kind of robot."""

    name: str
    prompt: tuple[KeyPath, ...]
    """possible paths of the instruction; the first that is present counts"""
    state: tuple[StatePart, ...] = ()
    """its parts in the policy's order; (): the robot has no state"""
    cameras: Mapping[str, KeyPath] = field(default_factory=dict)
    """the policy's camera -> its picture"""
    any_camera: KeyPath | None = None
    """path of the cameras that `cameras` does not name, with "{camera}" for the name; None: there are no others"""
    pictures: Literal["HWC", "CHW or HWC"] = "HWC"
    turned: bool = False
    """the client's pictures are upside down: each is turned by 180 degrees"""
    action: tuple[ActionPart, ...] = ()
    """an action as a map of these parts; empty: as an array"""
    action_dim: int | None = None
    """numbers in an action, if all robots of the kind have the same"""
    state_units: tuple[Unit, ...] = ()
    action_units: tuple[Unit, ...] = ()
    reply: Literal["map", "list"] = "map"
    """over HTTP: a map with "actions", or only the list of actions"""
    n_obs_steps: int = 0
    """control steps that the policy acts on: messages then have "episode", "step" and the "history" of the n - 1 steps
    before; 0: they have none of these"""
    protocol: str | None = None
    """the only protocol in which clients send such messages; None: any that has no schemas of its own"""

    def matches(self, message: Any) -> bool:
        """Return whether the message has all the cameras, whatever their values are."""
        try:
            return all(value_at(message, path) is not None for path in self.cameras.values())
        except WireError:
            return False

    def is_encoded(self, message: Any) -> bool:
        """Return whether pictures in the message must be decoded, which takes milliseconds."""
        paths = self.cameras.values() if self.matches(message) else ()
        return any(isinstance(value_at(message, path), EncodedPicture) for path in paths)

    def observation(self, message: Any) -> Observation:
        """Convert a message; pictures are views of it. WireError with the key that is missing or wrong."""
        present = Observation(self._frames(message), self.full_state(message), self.instruction(message))
        return self._with_history(present, message) if self.n_obs_steps else present

    def _frames(self, message: Any) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        return {camera: self.picture(message, camera) for camera in self.cameras}

    def _with_history(self, present: Observation, message: Any) -> Observation:
        """Add the message's episode, step and history."""
        episode, step = (_count(message, key) for key in (EPISODE, STEP))
        earlier, num_earlier = value_at(message, (HISTORY,)), self.n_obs_steps - 1
        if not isinstance(earlier, list) or len(earlier) != num_earlier:
            what = f"the history must be a list of the {num_earlier} observations before, oldest first"
            got = f"{len(earlier)} observations" if isinstance(earlier, list) else type(earlier).__name__
            raise WireError(what, where=HISTORY, got=got, next_step="at an episode's beginning repeat its first")
        present = replace(present, episode=episode, step=step)
        steps = [max(0, step - num_earlier + i) for i in range(num_earlier)]
        history = [
            replace(present, frames=self._frames(each), state=self.full_state(each), step=at)
            for each, at in zip(earlier, steps, strict=True)
        ]
        return replace(present, history=tuple(history))

    def picture(self, message: Any, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        """Return a camera's picture; WireError if it is missing, or not uint8 in the schema's layout."""
        path = self.cameras[camera]
        picture, where = value_at(message, path), path_text(path)
        if isinstance(picture, EncodedPicture):
            picture = picture.decoded(where)
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            raise _no_picture(picture, where)
        shape = picture.shape
        if len(shape) == 3 and 0 not in shape and shape[2] != 3 and shape[0] == 3 and self.pictures == "CHW or HWC":
            picture = picture.transpose(1, 2, 0)
        if picture.ndim != 3 or 0 in shape or picture.shape[2] != 3:
            step = "one RGB picture a camera: no batch, no history, no fourth channel"
            if picture.ndim == 2 or (picture.ndim == 3 and shape[2] == 1):
                step = "of a grey picture send np.repeat(x.reshape(height, width, 1), 3, axis=2)"
            expected = "(3, height, width) or " * (self.pictures == "CHW or HWC") + "(height, width, 3)"
            raise WireError("a picture has the wrong shape", where=where, got=shape, expected=expected, next_step=step)
        return picture[::-1, ::-1] if self.turned else picture

    def vector(self, message: Any, part: StatePart) -> Float32[np.ndarray, " n"]:
        """Return a part of the state, in the client's units; WireError unless it is that many finite numbers."""
        where, value = path_text(part.path), value_at(message, part.path)
        if part.row and isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == 1:
            value = value[0]
        numbers = _numbers(value, where)
        if part.length not in (None, len(numbers)):
            raise WireError("the state has the wrong length", where=where, got=len(numbers), expected=part.length)
        if not np.isfinite(numbers).all():
            raise WireError("the state must be finite", where=where, got=short(numbers.tolist()))
        return numbers

    def full_state(self, message: Any) -> Float32[np.ndarray, " P"]:
        """Return all parts of the state in the policy's units."""
        state = np.concatenate([np.zeros(0, np.float32), *(self.vector(message, part) for part in self.state)])
        for unit in self.state_units:
            if not -len(state) <= unit.dim < len(state):
                raise WireError(f"the state must have a number at {unit.dim}", got=f"{len(state)} numbers")
            state[unit.dim] = unit.to_policy(state[unit.dim])
        return state

    def instruction(self, message: Any) -> str:
        """Return the instruction, or the first of several; WireError if there is none."""
        present: dict[KeyPath, Any] = {}
        for path in self.prompt:
            with contextlib.suppress(WireError):
                value = value_at(message, path)
                present[path] = value[0] if isinstance(value, list) and value else value
        for path in sorted(present, key=lambda path: present[path] is None):  # null counts if there is nothing else
            if isinstance(text := present[path], str):
                return text
            got = "null" if text is None else type(text).__name__
            raise WireError("the instruction must be text", where=path_text(path), got=got)
        if not isinstance(message, dict):
            value_at(message, self.prompt[0])
        expected, step = " or ".join(map(path_text, self.prompt)), _nearest(self.prompt[0][0], message)
        got = short(sorted(message))
        raise WireError("the instruction is missing", where="message", got=got, expected=expected, next_step=step)

    def actions(
        self, chunk: Float32[np.ndarray, "H A"]
    ) -> Float32[np.ndarray, "H A"] | list[dict[str, Float32[np.ndarray, " n"]]]:
        """Convert a chunk for the client: an array, or a map of parts for every step; a copy either way."""
        sent = np.array(chunk, np.float32)
        for unit in self.action_units:
            sent[:, unit.dim] = unit.to_client(sent[:, unit.dim])
        if not self.action:
            return sent
        ends = np.cumsum([part.length for part in self.action])
        assert ends[-1] == sent.shape[1], "the schema must be fitted to the run"
        return [dict(zip((part.key for part in self.action), np.split(row, ends[:-1]), strict=True)) for row in sent]

    def message(self, observation: Observation) -> dict[str, Any]:
        """Return the message that a client of the (fitted) schema would send; the inverse of `observation`."""
        message = self._moment(observation)
        _put(message, self.prompt[0], observation.instruction)
        if self.n_obs_steps:
            history = [self._moment(earlier) for earlier in observation.history]
            message |= {EPISODE: observation.episode, STEP: observation.step, HISTORY: history}
        return message

    def _moment(self, observation: Observation) -> dict[str, Any]:
        """Return pictures and state as the client would send them."""
        state = np.array(observation.state, np.float32)
        for unit in self.state_units:
            state[unit.dim] = unit.to_client(state[unit.dim])
        ends = np.cumsum([part.length for part in self.state])
        assert sum(part.length or 0 for part in self.state) == len(state), "the schema must be fitted to the run"
        message: dict[str, Any] = {}
        for camera, path in self.cameras.items():
            picture = observation.frames[camera]
            _put(message, path, np.ascontiguousarray(picture[::-1, ::-1]) if self.turned else picture)
        for part, numbers in zip(self.state, np.split(state, ends[:-1]) if self.state else (), strict=True):
            _put(message, part.path, numbers[None] if part.row else numbers)
        return message

    def chunk(self, actions: Float32[np.ndarray, "H A"]) -> Float32[np.ndarray, "H A"]:
        """Convert a server's chunk to the policy's units; the inverse of `actions`, without parts."""
        chunk = actions.copy()
        for unit in self.action_units:
            chunk[:, unit.dim] = unit.to_policy(chunk[:, unit.dim])
        return chunk


def fit_schema(
    schema: RobotSchema,
    cameras: Sequence[str],
    state_dim: int,
    action_dim: int,
    renames: Mapping[str, str] | None = None,
) -> RobotSchema:
    """Return the schema for a run with these cameras, numbers in a state, and numbers in an action.

    `renames`: the client's name of a camera -> the run's. The schema's other cameras are dropped. ConfigError if they
    do not fit, with what to rename or to declare.
    """
    paths = _camera_paths(schema, cameras, renames or {})
    parts = _with_lengths(schema, state_dim)
    expected = sum(part.length for part in schema.action) or schema.action_dim
    if expected not in (None, action_dim):
        raise _no_fit(schema, "action", action_dim, expected)
    for what, dim, units in (("state", state_dim, schema.state_units), ("action", action_dim, schema.action_units)):
        for wrong in (unit.dim for unit in units if not -dim <= unit.dim < dim):
            text = f"a unit's dim must be 0 to {dim - 1}, as in the run"
            raise ConfigError(text, where=f"{schema.name}: {what}_units", got=wrong)
    return replace(schema, cameras=paths, state=parts, action_dim=action_dim)


def schemas_of(schemas: Sequence[RobotSchema], protocol: str) -> list[RobotSchema]:
    """Return the schemas for a protocol's messages: its own, else those of no protocol, else all that a server has."""
    for wanted in (protocol, None):
        if found := [schema for schema in schemas if schema.protocol == wanted]:
            return found
    return list(schemas)


def _no_fit(schema: RobotSchema, kind: str, dim: int, expected: object) -> ConfigError:
    what, got = f"the run's {kind} does not fit the robot schema {schema.name!r}", f"{dim} numbers in the run"
    return ConfigError(what, got=got, expected=expected, next_step=GUIDE)


def _camera_paths(schema: RobotSchema, cameras: Sequence[str], renames: Mapping[str, str]) -> dict[str, KeyPath]:
    where, theirs = f"{schema.name}: cameras", {ours: name for name, ours in renames.items()}
    if unknown := [ours for ours in renames.values() if ours not in cameras]:
        step = did_you_mean(unknown[0], cameras)
        raise ConfigError("the run has no such camera", where="--renames", got=unknown[0], next_step=step)
    if len(theirs) != len(renames):
        raise ConfigError("two cameras are renamed to one", where="--renames", got=dict(renames))
    paths = {}
    for ours in cameras:
        name = theirs.get(ours, ours)
        any_camera = tuple(name if key == CAMERA else key for key in schema.any_camera or ())
        paths[ours] = schema.cameras.get(name, any_camera)
        if not paths[ours]:
            expected, step = ", ".join(schema.cameras), f"--renames {next(iter(schema.cameras))} {ours}; {GUIDE}"
            raise ConfigError("the schema has no such camera", where=where, got=name, expected=expected, next_step=step)
    if len(set(paths.values())) != len(paths):
        got, step = {ours: path_text(path) for ours, path in paths.items()}, "rename the other camera, too"
        raise ConfigError("two of the run's cameras would be one picture", where=where, got=got, next_step=step)
    return paths


def _with_lengths(schema: RobotSchema, state_dim: int) -> tuple[StatePart, ...]:
    """Return the state's parts, with the length of a single part that has none."""
    known = sum(part.length or 0 for part in schema.state)
    num_open = sum(part.length is None for part in schema.state)
    if state_dim == 0 and not known:
        return ()  # a client's state is ignored
    if known + num_open > state_dim or (not num_open and known != state_dim):
        parts = ", ".join(f"{path_text(part.path)} ({part.length or 'any'})" for part in schema.state) or "no state"
        raise _no_fit(schema, "state", state_dim, parts)
    if num_open != 1:
        return schema.state
    return tuple(part if part.length else replace(part, length=state_dim - known) for part in schema.state)


def _no_picture(value: Any, where: str) -> WireError:
    if isinstance(value, (bytes, str)):
        what = "an encoded picture must be a PNG or JPEG as bytes, or over HTTP in base64 or as a data URL"
        return WireError(what, where=where, got=f"{type(value).__name__}, {short(value[:24])}")
    got, step = type(value).__name__, "np.asarray(picture, np.uint8)"
    if isinstance(value, np.ndarray):
        got = short(value)
        if value.dtype.kind == "f":
            step = "of floats in 0..1 send (255 * x).round().astype(np.uint8)"
        elif value.dtype == np.uint16:
            step = "of 16 bits send (x >> 8).astype(np.uint8)"
    what = "a picture must be uint8 RGB in 0..255, or a complete PNG or JPEG"
    return WireError(what, where=where, got=got, next_step=step)


def value_at(message: Any, path: KeyPath) -> Any:
    """Return the value at `path`; WireError with the key that is missing and those that are present."""
    value = message
    for i, key in enumerate(path):
        where = path_text(path[:i]) or "message"
        if not isinstance(value, dict):
            raise WireError(f"a map with {key!r} is missing", where=where, got=short(value))
        if key not in value:
            got, step = short(sorted(value)), _nearest(key, value)
            raise WireError(f"the key {key!r} is missing", where=where, got=got, next_step=step)
        value = value[key]
    return value


def _count(message: Any, key: str) -> int:
    """Return the integer of at least 0 at the message's `key`."""
    value = value_at(message, (key,))
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or value < 0:
        raise WireError(f"{key} must be an integer, at least 0", where=key, got=short(value))
    return value


def _put(message: dict[str, Any], path: KeyPath, value: Any) -> None:
    for key in path[:-1]:
        message = message.setdefault(key, {})
    message[path[-1]] = value


def path_text(path: KeyPath) -> str:
    """Format a path for a person."""
    return " > ".join(path)


def _nearest(key: str, keys: Iterable[str]) -> str:
    near = sorted(short(name).strip("'") for name in keys)[:50]  # a client may send many long keys
    return did_you_mean(key, near) if near else "the message is empty"


def _is_number(value: Any) -> bool:
    """Return whether it is one of Python's numbers, or of numpy's, as list(vector) has them."""
    return type(value) in (int, float) or (isinstance(value, np.generic) and value.dtype.kind in "fiu")


def _numbers(value: Any, where: str) -> Float32[np.ndarray, " n"]:
    """Convert a vector, a number, or a list of numbers to float32."""
    if all(map(_is_number, value if isinstance(value, list) else [value])):
        value = np.asarray(value, np.float64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise WireError("a part of the state must be an array of numbers", where=where, got=short(value))
    if value.ndim > 1:
        step = "send the present state alone: no batch, no history"
        raise WireError("a part of the state must be one vector", where=where, got=value.shape, next_step=step)
    with np.errstate(over="ignore"):  # too large for float32: infinite, and refused
        return np.atleast_1d(value).astype(np.float32)
