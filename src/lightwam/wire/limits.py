"""Limits of messages from outside. What does not fit is a WireError, before memory is spent on it.

Every protocol here carries a tree of maps, lists, texts, numbers and arrays; only the bytes differ. `TreeReader` walks
the tree once, from the top, so that each error names the keys that lead to it.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import math
import reprlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lightwam.errors import WireError
from lightwam.system.images import JPEG, PNG, PictureError, decode, is_encoded

MIB = 1 << 20
MAX_AXES = 8
ITEM_SIZES: Mapping[str, tuple[int, ...]] = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
"""kind of number -> bytes that one may have"""
NUMBERS = "b1, i1 to i8, u1 to u8 or f2 to f8, or a name such as bool, uint8, float32"
DTYPES_BY_NAME: Mapping[str, np.dtype[Any]] = {
    np.dtype(f"{kind}{size}").name: np.dtype(f"{kind}{size}") for kind, sizes in ITEM_SIZES.items() for size in sizes
}
"""dtypes by numpy's names"""
STANDARD = str.maketrans("-_", "+/")
"""from base64 for URLs to base64"""
PICTURE_STARTS = tuple(base64.b64encode(start[: len(start) // 3 * 3]).decode() for start in (PNG, JPEG))
"""how a PNG and a JPEG begin in base64"""
CONVERT = "convert it before sending: np.asarray(x, np.float32), pictures uint8"
ADVICE: Mapping[str, str] = {
    "O": "an array of objects holds lists of different lengths, or no numbers: send np.asarray(x, np.float32)",
    "U": "send a text as a text, not as an array",
    "S": "send a text as a text, not as an array",
    "V": "send each field of a structure as an array of its own",
    "c": "send the real and the imaginary part as two arrays",
    "M": "send times as float64, in seconds",
    "m": "send times as float64, in seconds",
    "f": "float32 is '<f4', float64 is '<f8'; wider ones have to be converted",
}
"""numpy's letter for a kind of dtype -> what to do instead"""
NO_EXTENSIONS = "no extension types: send an array's bytes as msgpack's bin (of JavaScript's typed arrays the buffer)"
DTYPE_ALIASES: Mapping[str, str] = {
    "half": "float16",
    "single": "float32",
    "double": "float64",
}
"""other names that numpy has for them; not those whose width depends on the machine or the language"""
AMBIGUOUS_DTYPES: Mapping[str, str] = {
    "float": "say how wide: 'float32' or 'float64'",
    "int": "say how wide: 'int32' or 'int64'",
    "integer": "say how wide: 'int32' or 'int64'",
    "long": "say how wide: 'int32' or 'int64'",
    "uint": "say how wide: 'uint8', 'uint32' or 'uint64'",
    "byte": "'uint8' if it counts from 0 to 255",
    "char": "'uint8' if it counts from 0 to 255",
    "number": "say what they are: 'float32', 'float64' or 'uint8'",
    "f": "did you mean 'float32', which is '<f4'?",
    "d": "did you mean 'float64', which is '<f8'?",
    "?": "did you mean 'bool', which is '|b1'?",
    "b": "did you mean 'uint8', which is '|u1'?",
    "f32": "did you mean 'float32', which is '<f4'?",
    "f64": "did you mean 'float64', which is '<f8'?",
    "u8": "did you mean 'uint8', which is '|u1'?",
}
"""names that say too little, in small letters -> what to do"""
WORDS: Mapping[str, str] = {
    "object": "O",
    "str": "U",
    "string": "U",
    "bytes": "S",
    "void": "V",
    "complex64": "c",
    "complex128": "c",
    "datetime64": "M",
    "timedelta64": "m",
    "bfloat16": "f",
    "float128": "f",
    "longdouble": "f",
}
"""name of a dtype -> its letter in INSTEAD"""


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


class EntryCounter:
    """Counts the entries of a message while it is being parsed: a small message may ask for a great many lists."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.count = limits, 0

    def entries(self, found: list[Any]) -> list[Any]:
        """A list, as it is."""
        self.count += len(found) + 1  # of lists not closed yet, the empty ones inside cost memory, too
        if self.count > self.limits.num_items:
            raise too_many_entries(self.limits)
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


def too_many_entries(limits: Limits) -> WireError:
    """The refusal of a message with too many entries."""
    return WireError("the message has too many entries", where="message", got=f"more than {limits.num_items}",
                     expected=f"at most {limits.num_items} in all maps and lists",
                     next_step="send pictures and vectors as arrays, not as lists of numbers")  # fmt: skip


ReadArray = Callable[[Mapping[Any, Any], str, Limits], Any]
"""map that stands for an array, where it stands, limits -> the array"""


@dataclass(frozen=True, repr=False)
class EncodedPicture:
    """A PNG or JPEG that is not decoded yet: only the pictures that a family reads are."""

    data: bytes
    most_bytes: int
    """largest decoded size"""
    legacy: bool
    """from XPolicyLab, where an unmarked JPEG has red and blue swapped"""

    def __repr__(self) -> str:
        kind = "PNG" if self.data.startswith(PNG) else "JPEG" if self.data.startswith(JPEG) else "a picture"
        return f"{kind} of {len(self.data)} bytes"

    def decoded(self, where: str) -> UInt8[np.ndarray, "height width 3"]:
        """Decode the RGB picture; WireError when it is incomplete or too large."""
        try:
            return decode(self.data, self.most_bytes, legacy=self.legacy)
        except PictureError as error:
            raise WireError("an encoded picture cannot be used", where=where, got=str(error),
                            expected=f"a whole PNG or JPEG, RGB or grey, of at most {self.most_bytes} bytes decoded",
                            next_step=error.step) from error  # fmt: skip


class TreeReader:
    """Converter of a parsed message to a tree with arrays; `marks` are the keys by which a map stands for an array.

    `legacy`: as in `EncodedPicture`.
    """

    def __init__(
        self, limits: Limits, marks: Collection[Hashable], read_array: ReadArray, *, legacy: bool = False
    ) -> None:
        self.limits, self.marks, self.read_array, self.legacy = limits, marks, read_array, legacy
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
            data = _picture_in(found)
            return self._text(found, where) if data is None else self._encoded(data, where)
        if isinstance(found, bytes) and is_encoded(found):
            return self._encoded(found, where)
        if isinstance(found, int) and not -(1 << 63) <= found < 1 << 64:
            raise WireError("a number is too large", where=where or "message", got=f"{found.bit_length()} bits",
                            expected="at most 64 bits")  # fmt: skip
        if found is None or isinstance(found, (bool, int, float, bytes)):
            return found
        raise WireError("a value of a kind that nobody sends", where=where or "message", got=type(found).__name__,
                        expected="a map, list, text, number or array", next_step=NO_EXTENSIONS)  # fmt: skip

    def _array(self, found: Mapping[Any, Any], where: str) -> Any:
        self._count_array(where)
        read = self.read_array(found, where or "message", self.limits)
        if isinstance(read, np.ndarray) and read.dtype == np.uint8 and read.ndim == 1:
            start = read[:8].tobytes()
            if is_encoded(start):
                return EncodedPicture(read.tobytes(), self.limits.array_bytes, self.legacy)
        return read

    def _encoded(self, data: bytes, where: str) -> EncodedPicture:
        self._count_array(where)
        return EncodedPicture(data, self.limits.array_bytes, self.legacy)

    def _count_array(self, where: str) -> None:
        self.num_arrays += 1
        if self.num_arrays > self.limits.num_arrays:
            raise WireError("the message has too many arrays", where=where or "message",
                            got=f"more than {self.limits.num_arrays}",
                            expected=f"at most {self.limits.num_arrays}")  # fmt: skip

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
            is_data = text.startswith("data:") or (text[:1000].isascii() and not any(map(str.isspace, text[:1000])))
            step = "a picture in base64 has to be a PNG or JPEG"
            kind = f"beginning {text[:24]!r}" if is_data else f"{len(text.split())} words"
            raise WireError("a text is too long", where=where or "message", got=f"{len(text)} characters, {kind}",
                            expected=f"at most {self.limits.text_chars}",
                            next_step=step if is_data else "shorten it, or raise --limits.text-chars")  # fmt: skip
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a character, which JSON can say and nobody can print
            raise WireError("a text is not Unicode", where=where or "message", got=str(error.reason),
                            expected="text that UTF-8 can hold") from error  # fmt: skip
        return text


def _picture_in(text: str) -> bytes | None:
    """Decode a PNG or JPEG from base64, plain or in a data URL; None for other texts."""
    start, comma, _ = text[:64].partition(",")
    is_url = bool(comma) and start.startswith("data:image/") and start.endswith(";base64")
    if not is_url and not text[:16].translate(STANDARD).startswith(PICTURE_STARTS):
        return None
    try:
        rest = "".join((text[len(start) + 1 :] if is_url else text).split()).translate(STANDARD)
        data = binascii.a2b_base64(rest + "=" * (-len(rest) % 4))  # JavaScript's often has no padding
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return None
    return data if is_url or is_encoded(data) else None


def array(dtype: Any, shape: Any, data: Any, where: str, limits: Limits) -> np.ndarray:
    """The array that a message describes: a read-only view of `data`, or a copy where its bytes are in reverse order.

    `dtype` as numpy writes it ("<f4"), one of b, i, u, f; anything else, or sizes that do not match, is a WireError.
    """
    kind = number_dtype(dtype, where)
    if not isinstance(shape, list) or len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise WireError("an array's shape is not a shape", where=where, got=short(shape),
                        expected=f"a list of at most {MAX_AXES} sizes")  # fmt: skip
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


def number_dtype(dtype: Any, where: str) -> np.dtype[Any]:
    """Parse a dtype of numbers, as numpy writes it ("<f4", "|u1") or by name ("float32", "uint8").

    WireError for objects, texts, structures and the like, and for unknown names, with what to send instead. Without a
    byte order it is little-endian, as all robots' computers are.
    """
    name = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype if isinstance(dtype, str) else ""
    name = DTYPE_ALIASES.get(name, name)
    bare = name[1:] if name[:1] in tuple("<>|=") else name
    if name in DTYPES_BY_NAME:
        return DTYPES_BY_NAME[name]
    if bare[1:] not in tuple(str(size) for size in ITEM_SIZES.get(bare[:1], ())):
        step = _instead(bare) if isinstance(dtype, (str, bytes)) else ADVICE["V"]
        raise WireError("an array's dtype is not one of numbers", where=where, got=short(dtype), expected=NUMBERS,
                        next_step=step)  # fmt: skip
    return np.dtype(name)


def _instead(bare: str) -> str:
    """Say what to send instead of an array of the dtype `bare`, which has no byte order."""
    if "," in bare:
        return ADVICE["V"]
    if bare.lower() in AMBIGUOUS_DTYPES:
        return AMBIGUOUS_DTYPES[bare.lower()]
    size = bare[1:].partition("[")[0]  # times have a unit in brackets
    if bare[:1] in ADVICE and (not size or size.isdigit()):
        return ADVICE[bare[0]]
    word = bare[:64].lower()
    inner = [name for name in DTYPES_BY_NAME if name in word and f"b{name}" not in word]  # "torch.float32"
    near = difflib.get_close_matches(word, [*DTYPES_BY_NAME, *WORDS], n=1, cutoff=0.5)
    likely = max(inner, key=len, default=near[0] if near else "")
    if likely in DTYPES_BY_NAME:
        return f"did you mean {likely!r}, which is {DTYPES_BY_NAME[likely].str!r}?"
    return ADVICE[WORDS[likely]] if likely else CONVERT


def scalar(kind: np.dtype[Any], value: Any, where: str) -> np.generic:
    """One number of a dtype; WireError when `value` is another kind of thing, or does not fit into it."""
    allowed: Mapping[str, tuple[type, ...]] = {"b": (bool,), "f": (int, float)}
    if type(value) not in allowed.get(kind.kind, (int,)):
        raise WireError("a number is of another type than it says", where=where, got=short(value), expected=kind)
    if kind.kind in "iu" and not np.iinfo(kind).min <= value <= np.iinfo(kind).max:  # NumPy 1 would wrap it around
        raise WireError("a number must fit its dtype", where=where, got=short(value), expected=kind)
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


def check_sendable(value: np.ndarray | np.generic) -> None:
    """WireError for an array that the other side would refuse."""
    if value.dtype.kind not in ITEM_SIZES or value.dtype.itemsize not in ITEM_SIZES[value.dtype.kind]:
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
