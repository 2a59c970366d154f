"""A family of robots: where in a message its pictures, state and sentence lie, and how it wants to be told what to do.

Robots' clients differ in little but names, so a family is data, and a new robot is a file of a dozen lines
(`schemas.read`). `fit_schema` holds it against a run before a robot is listened to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.errors import ConfigError, WireError, did_you_mean
from lightwam.types import Observation
from lightwam.wire.limits import EncodedPicture, short

KeyPath = tuple[str, ...]
"""keys from the top of a message downwards; openpi's contain slashes, so they are not written as one text"""
CAMERA = "{camera}"
"""stands for the camera's name in `RobotSchema.any_camera`"""
GUIDE = "docs/serving_robots.md shows how to declare a robot in a file"


@dataclass(frozen=True)
class StatePart:
    """A vector of the state: where it lies, and its length where that is known."""

    path: KeyPath
    length: int | None = None
    row: bool = False
    """the client sends it with shape (1, n)"""


@dataclass(frozen=True)
class ActionPart:
    """So many of an action's numbers, which the client reads under `key`."""

    key: str
    length: int


@dataclass(frozen=True)
class Unit:
    """A number that the client counts in another way: the client's is `scale` times the policy's plus `offset`."""

    dim: int
    scale: float
    offset: float

    def to_client(self, number: Any) -> Any:
        """The policy's number, or an array of them, as the client counts."""
        return number * np.float32(self.scale) + np.float32(self.offset)

    def to_policy(self, number: Any) -> Any:
        """The client's number, or an array of them, as the policy counts."""
        return (number - np.float32(self.offset)) / np.float32(self.scale)


@dataclass(frozen=True)
class RobotSchema:
    """What a family's clients send and expect."""

    name: str
    prompt: tuple[KeyPath, ...]
    """where the sentence may lie; the first that is there is taken"""
    state: tuple[StatePart, ...] = ()
    """its parts in the policy's order; (): the robot has no state"""
    cameras: Mapping[str, KeyPath] = field(default_factory=dict)
    """the policy's camera -> its picture"""
    any_camera: KeyPath | None = None
    """where a camera lies that `cameras` does not name, "{camera}" standing for its name; None: there are no others"""
    pictures: Literal["HWC", "CHW or HWC"] = "HWC"
    turned: bool = False
    """the client's pictures lie upside down: each is turned by 180 degrees"""
    action: tuple[ActionPart, ...] = ()
    """an action as a map of these parts; empty: as plain numbers"""
    action_dim: int | None = None
    """numbers in an action, where the family's robots agree on that"""
    state_units: tuple[Unit, ...] = ()
    action_units: tuple[Unit, ...] = ()
    reply: Literal["map", "list"] = "map"
    """over HTTP: a map with "actions", or only the list of actions"""

    def matches(self, message: Any) -> bool:
        """Whether all of the cameras' pictures are in the message, whatever they are."""
        try:
            return all(value_at(message, path) is not None for path in self.cameras.values())
        except WireError:
            return False

    def is_encoded(self, message: Any) -> bool:
        """Return whether pictures in the message must be decoded, which takes milliseconds."""
        return self.matches(message) and any(
            isinstance(value_at(message, path), EncodedPicture) for path in self.cameras.values()
        )

    def observation(self, message: Any) -> Observation:
        """What the policy sees; pictures are views of the message. WireError with the key that is missing or wrong."""
        frames = {camera: self.picture(message, camera) for camera in self.cameras}
        return Observation(frames, self.full_state(message), self.instruction(message))

    def picture(self, message: Any, camera: str) -> UInt8[np.ndarray, "height width 3"]:
        """One camera's picture; WireError when it is missing, or not uint8 of the family's layout."""
        path = self.cameras[camera]
        found, where = value_at(message, path), path_text(path)
        if isinstance(found, EncodedPicture):
            picture = found.decoded(where)
            return picture[::-1, ::-1] if self.turned else picture
        if not isinstance(found, np.ndarray) or found.dtype != np.uint8:
            raise _no_picture(found, where)
        if found.ndim == 3 and 0 not in found.shape:
            if found.shape[2] == 3:
                return found[::-1, ::-1] if self.turned else found
            if self.pictures == "CHW or HWC" and found.shape[0] == 3:
                upright = found.transpose(1, 2, 0)
                return upright[::-1, ::-1] if self.turned else upright
        step = "one RGB picture a camera: no batch, no history, no fourth channel"
        if found.ndim == 2 or (found.ndim == 3 and found.shape[2] == 1):
            step = "of a grey picture send np.repeat(x.reshape(height, width, 1), 3, axis=2)"
        layouts = {"HWC": "(height, width, 3)", "CHW or HWC": "(3, height, width) or (height, width, 3)"}
        raise WireError("a picture has the wrong shape", where=where, got=found.shape, expected=layouts[self.pictures],
                        next_step=step)  # fmt: skip

    def vector(self, message: Any, part: StatePart) -> Float32[np.ndarray, " n"]:
        """One part of the state, as the client counts; WireError when it is missing, not numbers, or not that many."""
        where, found = path_text(part.path), value_at(message, part.path)
        if part.row and isinstance(found, np.ndarray) and found.ndim == 2 and len(found) == 1:
            found = found[0]
        numbers = _numbers(found, where)
        if part.length not in (None, len(numbers)):
            raise WireError("a part of the state has another length", where=where, got=len(numbers),
                            expected=part.length)  # fmt: skip
        if not np.isfinite(numbers).all():
            raise WireError("the state is not finite", where=where, got=short(numbers.tolist()), expected="finite")
        return numbers

    def full_state(self, message: Any) -> Float32[np.ndarray, " P"]:
        """All parts of the state in the policy's units."""
        state = np.concatenate([np.zeros(0, np.float32), *(self.vector(message, part) for part in self.state)])
        for unit in self.state_units:
            if not -len(state) <= unit.dim < len(state):
                raise WireError("the state has no such number", where="state", got=f"{len(state)} numbers",
                                expected=f"one at {unit.dim}")  # fmt: skip
            state[unit.dim] = unit.to_policy(state[unit.dim])
        return state

    def instruction(self, message: Any) -> str:
        """The sentence, or the first of several; WireError when there is none."""
        empty: KeyPath = ()
        for path in self.prompt:
            try:
                found = value_at(message, path)
            except WireError:
                continue
            empty = empty or path
            if isinstance(found, list) and found:
                found = found[0]
            if isinstance(found, str):
                return found
            if found is not None:
                raise WireError("the instruction is not text", where=path_text(path), got=type(found).__name__,
                                expected="text")  # fmt: skip
        if empty:
            raise WireError("the instruction is not text", where=path_text(empty), got="null", expected="text")
        if not isinstance(message, dict):
            value_at(message, self.prompt[0])
        raise WireError("the instruction is missing", where="message", got=short(sorted(message)),
                        expected=" or ".join(map(path_text, self.prompt)),
                        next_step=_nearest(self.prompt[0][0], message))  # fmt: skip

    def actions(
        self, chunk: Float32[np.ndarray, "H A"]
    ) -> Float32[np.ndarray, "H A"] | list[dict[str, Float32[np.ndarray, " n"]]]:
        """A chunk as the client wants it: numbers, or a map of parts for every step; a copy either way."""
        sent = np.array(chunk, np.float32)
        for unit in self.action_units:
            sent[:, unit.dim] = unit.to_client(sent[:, unit.dim])
        if not self.action:
            return sent
        ends = np.cumsum([part.length for part in self.action])
        assert ends[-1] == sent.shape[1], "a family is fitted to its run before it answers"
        return [dict(zip((part.key for part in self.action), np.split(row, ends[:-1]), strict=True)) for row in sent]

    def message(self, seen: Observation) -> dict[str, Any]:
        """What a client of the (fitted) family would send of an observation: the inverse of `observation`."""
        state = np.array(seen.state, np.float32)
        for unit in self.state_units:
            state[unit.dim] = unit.to_client(state[unit.dim])
        ends = np.cumsum([part.length for part in self.state])
        assert sum(part.length or 0 for part in self.state) == len(state), "a family is fitted before it speaks"
        message: dict[str, Any] = {}
        for camera, path in self.cameras.items():
            picture = seen.frames[camera]
            _put(message, path, np.ascontiguousarray(picture[::-1, ::-1]) if self.turned else picture)
        for part, numbers in zip(self.state, np.split(state, ends[:-1]) if self.state else (), strict=True):
            _put(message, part.path, numbers[None] if part.row else numbers)
        _put(message, self.prompt[0], seen.instruction)
        return message

    def chunk(self, actions: Any) -> Float32[np.ndarray, "H A"]:
        """What a policy meant by the numbers that a client was answered: the inverse of `actions`, without parts.

        WireError for what is no chunk of finite numbers, or has another number of them in an action.
        """
        expected = f"finite numbers (H, {self.action_dim or 'A'})"
        got = f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else type(actions).__name__
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu" or actions.ndim != 2:
            raise WireError("the answer's actions are no chunk", where="actions", got=got, expected=expected)
        if actions.shape[1] != (self.action_dim or actions.shape[1]) or 0 in actions.shape:
            raise WireError("the answer's actions have another size", where="actions", got=got, expected=expected)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            meant = np.array(actions, np.float32)
        if not np.isfinite(meant).all():
            raise WireError("the answer's actions are not finite", where="actions", got=got, expected=expected)
        for unit in self.action_units:
            meant[:, unit.dim] = unit.to_policy(meant[:, unit.dim])
        return meant


def fit_schema(
    schema: RobotSchema,
    cameras: Sequence[str],
    state_dim: int,
    action_dim: int,
    renames: Mapping[str, str] | None = None,
) -> RobotSchema:
    """The family for a run with these cameras, numbers in a state, and numbers in an action.

    `renames`: the client's name of a camera -> the run's. Cameras that the run has no use for are left out. ConfigError
    when they do not fit each other, with what to rename or to declare.
    """
    places = _placed(schema, cameras, renames or {})
    parts = _with_lengths(schema, state_dim)
    expected = sum(part.length for part in schema.action) if schema.action else schema.action_dim
    if expected not in (None, action_dim):
        raise ConfigError("the run has other actions than this family's robots", where=f"{schema.name}: action",
                          got=f"{action_dim} numbers in the run", expected=expected, next_step=GUIDE)  # fmt: skip
    for what, dim, units in (("state", state_dim, schema.state_units), ("action", action_dim, schema.action_units)):
        for unit in units:
            if not -dim <= unit.dim < dim:
                raise ConfigError(f"the run's {what} has no such number", where=f"{schema.name}: {what}_units",
                                  got=unit.dim, expected=f"0 to {dim - 1}", next_step=GUIDE)  # fmt: skip
    return replace(schema, cameras=places, state=parts, action_dim=action_dim)


def _placed(schema: RobotSchema, cameras: Sequence[str], renames: Mapping[str, str]) -> dict[str, KeyPath]:
    where = f"{schema.name}: cameras"
    theirs = {ours: name for name, ours in renames.items()}
    if unknown := [ours for ours in renames.values() if ours not in cameras]:
        raise ConfigError("the run has no such camera", where=where, got=unknown[0], expected=", ".join(cameras),
                          next_step=did_you_mean(unknown[0], cameras))  # fmt: skip
    if len(theirs) != len(renames):
        raise ConfigError("two cameras are renamed to one", where=where, got=dict(renames), expected="one to each")
    places = {}
    for ours in cameras:
        name = theirs.get(ours, ours)
        if name in schema.cameras:
            places[ours] = schema.cameras[name]
        elif schema.any_camera is not None:
            places[ours] = tuple(name if key == CAMERA else key for key in schema.any_camera)
        else:
            known = ", ".join(schema.cameras)
            first = next(iter(schema.cameras))
            raise ConfigError("the family has no such camera", where=where, got=name, expected=known,
                              next_step=f"rename one to the run's, as {first} {ours}; {GUIDE}")  # fmt: skip
    if len(set(places.values())) != len(places):
        raise ConfigError("two of the run's cameras would be one picture", where=where,
                          got={ours: path_text(path) for ours, path in places.items()}, expected="one to each",
                          next_step="rename the other camera, too")  # fmt: skip
    return places


def _with_lengths(schema: RobotSchema, state_dim: int) -> tuple[StatePart, ...]:
    """The state's parts, the length of one that has none worked out."""
    known = sum(part.length or 0 for part in schema.state)
    open_parts = [part for part in schema.state if part.length is None]
    if state_dim == 0 and not known:
        return ()  # a client's state is ignored
    if known + len(open_parts) > state_dim or (not open_parts and known != state_dim):
        parts = ", ".join(f"{path_text(part.path)} ({part.length or 'any'})" for part in schema.state) or "no state"
        raise ConfigError("the run has another state than this family's robots", where=f"{schema.name}: state",
                          got=f"{state_dim} numbers in the run", expected=parts, next_step=GUIDE)  # fmt: skip
    if len(open_parts) != 1:
        return schema.state
    return tuple(part if part.length else replace(part, length=state_dim - known) for part in schema.state)


def _no_picture(found: Any, where: str) -> WireError:
    """Return the error for a picture that is neither uint8 nor encoded."""
    got, expected = type(found).__name__, "uint8 RGB in 0..255, or a whole PNG or JPEG"
    if isinstance(found, (bytes, str)):
        return WireError("an encoded picture is neither PNG nor JPEG", where=where, got=f"{got}, {short(found[:24])}",
                         expected="PNG or JPEG: as bytes, or over HTTP in base64 or as a data URL")  # fmt: skip
    step = "np.asarray(picture, np.uint8)"
    if isinstance(found, np.ndarray):
        got = f"{found.dtype} {found.shape}"
        if found.dtype.kind == "f":
            step = "of floats in 0..1 send (255 * x).round().astype(np.uint8)"
        elif found.dtype == np.uint16:
            step = "of 16 bits send (x >> 8).astype(np.uint8)"
    return WireError("a picture is not uint8", where=where, got=got, expected=expected, next_step=step)


def value_at(message: Any, path: KeyPath) -> Any:
    """What lies at `path`; WireError with the key that is missing and those that are there."""
    found = message
    for i, key in enumerate(path):
        where = path_text(path[:i]) or "message"
        if not isinstance(found, dict):
            got = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise WireError("a map is missing", where=where, got=got, expected=f"a map with {key!r}")
        if key not in found:
            raise WireError("a key is missing", where=where, got=short(sorted(found)), expected=repr(key),
                            next_step=_nearest(key, found))  # fmt: skip
        found = found[key]
    return found


def _put(message: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Lays a value at `path`."""
    for key in path[:-1]:
        message = message.setdefault(key, {})
    message[path[-1]] = value


def path_text(path: KeyPath) -> str:
    """A path for a person."""
    return " > ".join(path)


def _nearest(key: str, found: Iterable[str]) -> str:
    near = sorted(short(name).strip("'") for name in found)[:50]  # a stranger's keys may be many and long
    return did_you_mean(key, near) if near else "the message is empty"


def _is_number(found: Any) -> bool:
    """Whether it is one of numpy's numbers, as Python's list(vector) has them."""
    return isinstance(found, np.generic) and found.dtype.kind in "fiu"


def _numbers(found: Any, where: str) -> Float32[np.ndarray, " n"]:
    """A vector, one number, or a list of numbers as float32."""
    if isinstance(found, list) and all(type(one) in (int, float) or _is_number(one) for one in found):
        found = np.asarray(found, np.float64)
    elif type(found) in (int, float):
        found = np.float64(found)
    if not isinstance(found, (np.ndarray, np.generic)) or found.dtype.kind not in "fiu":
        got = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else short(found)
        raise WireError("a part of the state is not numbers", where=where, got=got, expected="an array of floats")
    if found.ndim > 1:
        raise WireError("a part of the state is not one vector", where=where, got=found.shape, expected="(n,)",
                        next_step="send the present state alone: no batch, no history")  # fmt: skip
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        return np.atleast_1d(found).astype(np.float32)
