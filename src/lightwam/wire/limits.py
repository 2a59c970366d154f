"""What a message from outside may hold. Whatever does not fit is a WireError, before memory is spent on it.

Every protocol here says a tree of maps, lists, texts, numbers and arrays; only the bytes differ. `Reader` walks a tree
once, from the top, so that each fault is told with the keys that lead to it.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightwam.errors import WireError

MIB = 1 << 20
MOST_AXES = 8
DTYPES: Mapping[str, tuple[int, ...]] = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
"""kind of number -> bytes that one may have"""
NUMBERS = "numbers: b1, i1 to i8, u1 to u8, f2 to f8"


@dataclass(frozen=True)
class Limits:
    """The largest message; the defaults hold a dozen cameras, and refuse what no robot sends."""

    message_bytes: int = 32 * MIB
    array_bytes: int = 16 * MIB
    num_arrays: int = 64
    depth: int = 8
    """maps and lists inside one another"""
    num_items: int = 4096
    """entries of all maps and lists together"""
    text_chars: int = 4096

    def check_size(self, data: bytes) -> None:
        """WireError when a message has too many bytes."""
        if len(data) > self.message_bytes:
            raise WireError("the message is too large", where="message", got=f"{len(data)} bytes",
                            expected=f"at most {self.message_bytes}")  # fmt: skip


LIMITS = Limits()


class Counter:
    """Counts the entries of a message while it is being parsed: a small message may ask for a great many lists."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.count = limits, 0

    def entries(self, found: list[Any]) -> list[Any]:
        """A list, as it is."""
        self.count += len(found) + 1  # of lists not closed yet, the empty ones inside cost memory, too
        if self.count > self.limits.num_items:
            raise too_many(self.limits)
        return found

    def pairs(self, found: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
        """A map; of a key that comes twice nobody can say which one was meant."""
        self.entries(found)
        table = dict(found)
        if len(table) != len(found):
            keys = [key for key, _ in found]
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise WireError("a key comes twice", where="message", got=short(twice), expected="every key once")
        return table


def too_many(limits: Limits) -> WireError:
    """The refusal of a message with too many entries."""
    return WireError("the message has too many entries", where="message", got=f"more than {limits.num_items}",
                     expected=f"at most {limits.num_items} in all maps and lists",
                     next_step="send pictures and vectors as arrays, not as lists of numbers")  # fmt: skip


ReadArray = Callable[[Mapping[Any, Any], str, Limits], Any]
"""map that stands for an array, where it stands, limits -> the array"""


class Reader:
    """Turns a parsed message into a tree with arrays; `marks` are keys by which a map stands for an array."""

    def __init__(self, limits: Limits, marks: Collection[Hashable], read_array: ReadArray) -> None:
        self.limits, self.marks, self.read_array = limits, marks, read_array
        self.num_arrays = 0

    def tree(self, found: Any, where: str = "", depth: int = 0) -> Any:
        """The tree of `found`; WireError with the keys to what is not allowed."""
        if isinstance(found, dict):
            if any(mark in found for mark in self.marks):
                return self._array(found, where)
            self._check_depth(where, depth)
            return {self._key(key, where): self.tree(item, below(where, key), depth + 1) for key, item in found.items()}
        if isinstance(found, list):
            self._check_depth(where, depth)
            return [self.tree(item, below(where, i), depth + 1) for i, item in enumerate(found)]
        if isinstance(found, str):
            return self._text(found, where)
        if isinstance(found, int) and not -(1 << 63) <= found < 1 << 64:
            raise WireError("a number is too large", where=where or "message", got=f"{found.bit_length()} bits",
                            expected="at most 64 bits")  # fmt: skip
        if found is None or isinstance(found, (bool, int, float, bytes)):
            return found
        raise WireError("a value of a kind that nobody sends", where=where or "message", got=type(found).__name__,
                        expected="a map, list, text, number or array")  # fmt: skip

    def _array(self, found: Mapping[Any, Any], where: str) -> Any:
        self.num_arrays += 1
        if self.num_arrays > self.limits.num_arrays:
            raise WireError("the message has too many arrays", where=where or "message",
                            got=f"more than {self.limits.num_arrays}",
                            expected=f"at most {self.limits.num_arrays}")  # fmt: skip
        return self.read_array(found, where or "message", self.limits)

    def _check_depth(self, where: str, depth: int) -> None:
        if depth >= self.limits.depth:
            raise WireError("the message is too deep", where=where, got=f"more than {self.limits.depth} levels",
                            expected=f"at most {self.limits.depth} maps and lists inside one another")  # fmt: skip

    def _key(self, key: Any, where: str) -> str:
        if not isinstance(key, str):
            raise WireError("a key is not text", where=where or "message", got=short(key), expected="text",
                            next_step="bytes are keys only in a map that stands for an array")  # fmt: skip
        return self._text(key, where)

    def _text(self, text: str, where: str) -> str:
        if len(text) > self.limits.text_chars:
            raise WireError("a text is too long", where=where or "message", got=f"{len(text)} characters",
                            expected=f"at most {self.limits.text_chars}")  # fmt: skip
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a character, which JSON can say and nobody can print
            raise WireError("a text is not Unicode", where=where or "message", got=str(error.reason),
                            expected="text that UTF-8 can hold") from error  # fmt: skip
        return text


def array(dtype: Any, shape: Any, data: Any, where: str, limits: Limits) -> np.ndarray:
    """The array that a message describes: a read-only view of `data`, or a copy where its bytes are in reverse order.

    `dtype` as numpy writes it ("<f4"), one of b, i, u, f; anything else, or sizes that do not match, is a WireError.
    """
    kind = number_kind(dtype, where)
    if not isinstance(shape, list) or len(shape) > MOST_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise WireError("an array's shape is not a shape", where=where, got=short(shape),
                        expected=f"a list of at most {MOST_AXES} sizes")  # fmt: skip
    if not isinstance(data, bytes):
        raise WireError("an array's data are not bytes", where=where, got=type(data).__name__, expected="bytes")
    # zeros are left out, so that (0, 2**62) is not small
    if math.prod(n or 1 for n in shape) * kind.itemsize > limits.array_bytes:
        raise WireError("an array is too large", where=where, got=f"{short(shape)} of {kind.itemsize} bytes each",
                        expected=f"at most {limits.array_bytes} bytes")  # fmt: skip
    if len(data) != (size := math.prod(shape) * kind.itemsize):
        raise WireError("an array's data do not fill its shape", where=where, got=f"{len(data)} bytes",
                        expected=f"{size} bytes for {tuple(shape)} {kind}")  # fmt: skip
    found = np.ndarray(tuple(shape), kind, data)
    if found.dtype.isnative:
        return found
    turned = found.astype(kind.newbyteorder("="))
    turned.flags.writeable = False
    return turned


def number_kind(dtype: Any, where: str) -> np.dtype[Any]:
    """The dtype of numbers that `dtype` names ("<f4", "|u1"); WireError for objects, texts, structures and the like."""
    name = dtype if isinstance(dtype, str) else ""
    bare = name[1:] if name[:1] in tuple("<>|=") else name
    if bare[1:] not in tuple(str(size) for size in DTYPES.get(bare[:1], ())):
        raise WireError("an array's dtype is not one of numbers", where=where, got=short(dtype), expected=NUMBERS,
                        next_step="convert it before sending: np.asarray(x, np.float32), pictures uint8")  # fmt: skip
    return np.dtype(name)


def scalar(kind: np.dtype[Any], value: Any, where: str) -> np.generic:
    """One number of a dtype; WireError when `value` is another kind of thing, or does not fit into it."""
    allowed: Mapping[str, tuple[type, ...]] = {"b": (bool,), "f": (int, float)}
    if type(value) not in allowed.get(kind.kind, (int,)):
        raise WireError("a number is of another type than it says", where=where, got=short(value), expected=kind)
    if kind.kind in "iu" and not np.iinfo(kind).min <= value <= np.iinfo(kind).max:  # NumPy 1 would wrap it around
        raise WireError("a number does not fit its type", where=where, got=short(value), expected=kind)
    try:
        with np.errstate(over="ignore"):
            return kind.newbyteorder("=").type(value)
    except OverflowError as error:
        raise WireError("a number is too large", where=where, got=short(value), expected=kind) from error


def fields_of(found: Mapping[Any, Any], wanted: Sequence[Any], where: str, optional: Any = None) -> list[Any]:
    """The values of `wanted`, in that order, of a map that stands for an array; WireError for others than those."""
    if missing := [key for key in wanted if key not in found]:
        raise WireError("an array is incomplete", where=where, got=short(list(found)),
                        expected=f"also {missing}")  # fmt: skip
    if unknown := [key for key in found if key not in wanted and key != optional]:
        raise WireError("an array has keys that none has", where=where, got=short(unknown), expected=short(wanted))
    return [found[key] for key in wanted]


def sendable(value: np.ndarray | np.generic) -> None:
    """WireError for an array that the other side would refuse."""
    if value.dtype.kind not in DTYPES or value.dtype.itemsize not in DTYPES[value.dtype.kind]:
        raise WireError("an array cannot be sent", where="message", got=value.dtype, expected=NUMBERS)


def below(where: str, key: Any) -> str:
    """The place of `key` in what stands at `where`, in words that stay short whatever the key."""
    name = key if isinstance(key, str) else str(key) if isinstance(key, int) else short(key)
    name = name.encode(errors="backslashreplace").decode() if len(name) <= 64 else short(name)
    return f"{where} > {name}" if where else name


def short(value: Any) -> str:
    """A value in few words, however large it is."""
    return _brief.repr(value)


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80
_brief.maxlist = _brief.maxtuple = _brief.maxdict = 8
