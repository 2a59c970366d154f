"""msgpack under limits: what the messages of openpi, XPolicyLab and vla-eval have in common.

Each protocol may use every encoding of arrays: openpi's (`__ndarray__`), that of PyPI `msgpack-numpy` (`nd`), and
vla-eval's of pictures (`__image__`). The keys are bytes or texts, as the other side's language or codec has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from lightwam.errors import WireError
from lightwam.system.images import is_encoded
from lightwam.wire.dtypes import CONVERT, array, check_sendable, parse_dtype, scalar
from lightwam.wire.limits import (
    NO_EXTENSIONS,
    EntryCounter,
    Limits,
    ReadArray,
    TreeReader,
    duplicate_key,
    fields_of,
    short,
    too_many_entries,
)

MARKS = (b"__ndarray__", "__ndarray__", b"__npgeneric__", "__npgeneric__", b"nd", "nd", b"__image__", "__image__")
"""keys by which a map stands for an array or a number"""


def pack_msgpack(tree: Any, as_map: Callable[[Any], Any]) -> bytes:
    """Encode a tree as one msgpack value, numpy's values by `as_map`; WireError for what cannot be encoded."""

    def encode(value: Any) -> Any:
        check_sendable(value)
        return as_map(value)

    try:
        return msgpack.packb(tree, default=encode, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:  # ValueError: too deep, a circle, half a character
        expected = "maps, lists, texts, numbers of 64 bits and arrays"
        raise WireError("this cannot be sent", got=short(error), expected=expected) from error


def unpack_msgpack(data: bytes, limits: Limits, read: ReadArray | None = None, *, swapped_jpeg: bool = False) -> Any:
    """Decode one msgpack value, its arrays with `read_array` or `read`; WireError for any other bytes.

    msgpack allocates a list of the announced length before it reads it, up to 1,024 nested ones: with `num_items` 4,096
    that is 32 MiB for a moment, and no more.
    """
    limits.check_size(data)
    counter = EntryCounter(limits)
    try:
        tree = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=counter.entries,
            object_pairs_hook=counter.pairs,
            max_str_len=limits.array_bytes,
            max_bin_len=limits.array_bytes,
            max_array_len=limits.num_items,
            max_map_len=limits.num_items,
            max_ext_len=16,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise _unpack_error(error, len(data), limits) from error
    return TreeReader(limits, MARKS, read or read_array, swapped_jpeg=swapped_jpeg).tree(tree)


def _unpack_error(error: Exception, size: int, limits: Limits) -> WireError:
    reason = str(error) or type(error).__name__
    if "max_bin_len" in reason or "max_str_len" in reason:
        got, expected = reason.partition(" ")[0] + " bytes", f"at most {limits.array_bytes} bytes"
        return WireError("an array is too large", where="message", got=got, expected=expected)
    if "max_array_len" in reason or "max_map_len" in reason:
        return too_many_entries(limits)
    step = NO_EXTENSIONS if "max_ext_len" in reason else ""
    if isinstance(error, UnicodeDecodeError):
        step = "texts in UTF-8, bytes as msgpack's bin (in Python use_bin_type=True)"
    what, got = "the message must be one msgpack value within the limits", f"{size} bytes: {short(reason)}"
    return WireError(what, got=got, next_step=step)


def read_array(table: Mapping[Any, Any], where: str, limits: Limits) -> np.ndarray | np.generic:
    """Return the array or number that a map stands for, as a read-only view; WireError for another map."""
    fields = {key.decode(errors="replace") if isinstance(key, bytes) else key: item for key, item in table.items()}
    if len(fields) != len(table):
        raise duplicate_key(list(table), where)
    if "nd" in fields:
        return _msgpack_numpy(fields, where, limits)
    if "__image__" in fields:
        return _picture(fields, where, limits)
    names = ("__npgeneric__",) if "__npgeneric__" in fields else ("__ndarray__", "shape")
    mark, *shape, data, dtype = fields_of(fields, (*names, "data", "dtype"), where)
    if mark is not True:
        raise WireError("an array's mark must be true", where=where, got=short(mark))
    return array(dtype, shape[0], data, where, limits) if shape else scalar(parse_dtype(dtype, where), data, where)


def _msgpack_numpy(fields: Mapping[str, Any], where: str, limits: Limits) -> np.ndarray | np.generic:
    if fields["nd"] is False:
        _, dtype, data = fields_of(fields, ("nd", "type", "data"), where)
        if isinstance(data, bytes) and is_encoded(data):  # numpy's bytes_, as HDF5 holds a picture
            return np.frombuffer(data, np.uint8)
        return array(dtype, [], data, where, limits)[()]
    # `kind` came with msgpack-numpy 0.4.4; V stands for structures and O for pickles
    mark, dtype, shape, data = fields_of(fields, ("nd", "type", "shape", "data"), where, optional="kind")
    if shape == [] and isinstance(data, bytes) and is_encoded(data):
        return np.frombuffer(data, np.uint8)
    kind = fields.get("kind")
    if mark is not True or kind not in (b"", "", None):
        got, expected = f"nd {short(mark)}, kind {short(kind)}", "nd true, kind empty"
        raise WireError("an array must be one of numbers", where=where, got=got, expected=expected, next_step=CONVERT)
    return array(dtype, shape, data, where, limits)


def _picture(fields: Mapping[str, Any], where: str, limits: Limits) -> np.ndarray:
    """Return vla-eval's picture; of an encoded one its bytes as a vector, which `TreeReader` recognises."""
    mark, form, data, shape = fields_of(fields, ("__image__", "format", "data", "shape"), where, optional="dtype")
    if mark is not True or form not in ("png", "jpeg", "raw"):
        got, expected = f"__image__ {short(mark)}, format {short(form)}", "__image__ true, format png, jpeg or raw"
        raise WireError("a picture must be encoded as vla-eval does", where=where, got=got, expected=expected)
    if form == "raw":
        return array(fields.get("dtype"), shape, data, where, limits)
    if not isinstance(data, bytes) or not is_encoded(data):
        raise WireError("a picture's data must be a PNG or JPEG", where=where, got=short(data))
    return np.frombuffer(data, np.uint8)
