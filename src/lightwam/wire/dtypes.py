"""Arrays in messages: which dtypes they may have, and what to send in place of others."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightwam.errors import WireError
from lightwam.wire.limits import Limits, short

MAX_AXES = 8
ITEM_SIZES: Mapping[str, tuple[int, ...]] = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
"""kind of number -> bytes that a number may have"""
NUMBERS = "b1, i1 to i8, u1 to u8 or f2 to f8, or a name such as bool, uint8, float32"
DTYPES_BY_NAME: Mapping[str, np.dtype[Any]] = {
    np.dtype(f"{kind}{size}").name: np.dtype(f"{kind}{size}") for kind, sizes in ITEM_SIZES.items() for size in sizes
}
CONVERT = "convert it before sending: np.asarray(x, np.float32), pictures uint8"
ALIASES: Mapping[str, str] = {"half": "float16", "single": "float32", "double": "float64"}
"""numpy's other names, without those whose width depends on the machine or the language"""
_STRUCTURE = "send each field of a structure as an array of its own"
_OTHERS = (
    ("O", "object", "it holds lists of different lengths, or no numbers: send np.asarray(x, np.float32)"),
    ("US", "str string bytes", "send a text as a text, not as an array"),
    ("V", "void", _STRUCTURE),
    ("c", "complex64 complex128", "send the real and the imaginary part as two arrays"),
    ("Mm", "datetime64 timedelta64", "send times as float64, in seconds"),
    ("f", "bfloat16 float128 longdouble", "float32 is '<f4', float64 is '<f8'; wider ones have to be converted"),
    ("", "float", "say how wide: 'float32' or 'float64'"),
    ("", "int integer long", "say how wide: 'int32' or 'int64'"),
    ("", "uint", "say how wide: 'uint8', 'uint32' or 'uint64'"),
    ("", "byte char", "'uint8' if it counts from 0 to 255"),
    ("", "number", "say what they are: 'float32', 'float64' or 'uint8'"),
    ("", "f f32", "did you mean 'float32', which is '<f4'?"),
    ("", "d f64", "did you mean 'float64', which is '<f8'?"),
    ("", "?", "did you mean 'bool', which is '|b1'?"),
    ("", "b", "did you mean 'uint8', which is '|u1'?"),
)
"""dtypes that are not accepted: numpy's letters for the kind, names, and what to send instead"""
_BY_LETTER = {letter: advice for letters, _, advice in _OTHERS for letter in letters}
_BY_NAME = {name: advice for _, names, advice in _OTHERS for name in names.split()}


def array(dtype: Any, shape: Any, data: Any, where: str, limits: Limits) -> np.ndarray:
    """Return the array of a message: a read-only view of `data`, or a copy if its byte order is not this machine's.

    WireError for a `dtype` that `parse_dtype` refuses, and for sizes that do not match.
    """
    kind = parse_dtype(dtype, where)
    if not isinstance(shape, list) or len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise WireError(f"an array's shape must be a list of at most {MAX_AXES} sizes", where=where, got=short(shape))
    if not isinstance(data, bytes):
        raise WireError("an array's data must be bytes", where=where, got=type(data).__name__)
    # zeros are left out, so that (0, 2**62) is not small
    if math.prod(n or 1 for n in shape) * kind.itemsize > limits.array_bytes:
        got, expected = f"{short(shape)} of {kind.itemsize} bytes each", f"at most {limits.array_bytes} bytes"
        raise WireError("an array is too large", where=where, got=got, expected=expected)
    if len(data) != (size := math.prod(shape) * kind.itemsize):
        got, expected = f"{len(data)} bytes", f"{size} bytes for {tuple(shape)} {kind}"
        raise WireError("an array's data must fill its shape", where=where, got=got, expected=expected)
    view = np.ndarray(tuple(shape), kind, data)
    if not view.dtype.isnative:
        view = view.astype(kind.newbyteorder("="))
        view.flags.writeable = False
    return view


def scalar(kind: np.dtype[Any], value: Any, where: str) -> np.generic:
    """Return a number of a dtype; WireError for a value of another type, or out of the dtype's range."""
    allowed: Mapping[str, tuple[type, ...]] = {"b": (bool,), "f": (int, float)}
    if type(value) not in allowed.get(kind.kind, (int,)):
        raise WireError("a number must have the type of its dtype", where=where, got=short(value), expected=kind)
    if kind.kind in "iu" and not np.iinfo(kind).min <= value <= np.iinfo(kind).max:  # NumPy 1 would wrap it around
        raise WireError("a number must fit its dtype", where=where, got=short(value), expected=kind)
    try:
        with np.errstate(over="ignore"):
            return kind.newbyteorder("=").type(value)
    except OverflowError as error:
        raise WireError("a number is too large", where=where, got=short(value), expected=kind) from error


def check_sendable(value: Any) -> None:
    """Raise TypeError for anything but an array or number, and WireError for one that the other side would refuse."""
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{type(value).__name__} is not allowed in a message")
    if value.dtype.itemsize not in ITEM_SIZES.get(value.dtype.kind, ()):
        raise WireError("an array cannot be sent", got=value.dtype, expected=NUMBERS)


def parse_dtype(dtype: Any, where: str) -> np.dtype[Any]:
    """Parse a dtype of numbers, as numpy writes it ("<f4", "|u1") or by name ("float32", "uint8").

    WireError for objects, texts, structures and the like, and for unknown names, with what to send instead. Without a
    byte order it is little-endian, as all robots' computers are.
    """
    name = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype if isinstance(dtype, str) else ""
    name = ALIASES.get(name, name)
    bare = name[1:] if name[:1] in tuple("<>|=") else name
    if name in DTYPES_BY_NAME:
        return DTYPES_BY_NAME[name]
    if bare[1:] not in map(str, ITEM_SIZES.get(bare[:1], ())):
        step = _advice(bare) if isinstance(dtype, (str, bytes)) else _STRUCTURE
        what = "an array's dtype must be one of numbers"
        raise WireError(what, where=where, got=short(dtype), expected=NUMBERS, next_step=step)
    return np.dtype(name)


def _advice(bare: str) -> str:
    """Return what to send instead of an array of the dtype `bare`, which has no byte order."""
    word = bare[:64].lower()
    if "," in bare:
        return _STRUCTURE
    if word in _BY_NAME:
        return _BY_NAME[word]
    size = bare[1:].partition("[")[0]  # times have a unit in brackets
    if bare[:1] in _BY_LETTER and (not size or size.isdigit()):
        return _BY_LETTER[bare[0]]
    inner = [name for name in DTYPES_BY_NAME if name in word and f"b{name}" not in word]  # "torch.float32"
    near = difflib.get_close_matches(word, [*DTYPES_BY_NAME, *_BY_NAME], n=1, cutoff=0.5)
    likely = max(inner, key=len, default=near[0] if near else "")
    if likely in DTYPES_BY_NAME:
        return f"did you mean {likely!r}, which is {DTYPES_BY_NAME[likely].str!r}?"
    return _BY_NAME.get(likely, CONVERT)
