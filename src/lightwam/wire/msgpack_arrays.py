"""msgpack under limits: what openpi's and XPolicyLab's messages have in common.

Either protocol may use either encoding of arrays, openpi's (`__ndarray__`) or that of PyPI `msgpack-numpy` (`nd`). The
keys are bytes when Python wrote them, and texts when another language or codec did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from lightwam.errors import WireError
from lightwam.system.images import is_encoded
from lightwam.wire.limits import (
    CONVERT,
    NO_EXTENSIONS,
    EntryCounter,
    Limits,
    ReadArray,
    TreeReader,
    array,
    fields_of,
    number_dtype,
    scalar,
    short,
    too_many_entries,
)

MARKS = (b"__ndarray__", "__ndarray__", b"__npgeneric__", "__npgeneric__", b"nd", "nd")
"""keys by which a map stands for an array or a number"""


def pack_msgpack(tree: Any, of_array: Callable[[Any], Any]) -> bytes:
    """One msgpack value; `of_array` says numpy's values as maps. WireError for what msgpack cannot say."""
    try:
        return msgpack.packb(tree, default=of_array, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:  # ValueError: too deep, a circle, half a character
        raise WireError("this cannot be sent", where="message", got=short(error),
                        expected="maps, lists, texts, numbers of 64 bits and arrays") from error  # fmt: skip


def unpack_msgpack(data: bytes, limits: Limits, read: ReadArray | None = None, *, legacy: bool = False) -> Any:
    """Read one msgpack value, its arrays with `read_array` or `read`. WireError for any other bytes.

    msgpack makes a list of the announced length before it has read it, up to 1,024 of them inside one another: with
    `num_items` 4,096 that is 32 MiB for a moment, and no more.
    """
    limits.check_size(data)
    counter = EntryCounter(limits)
    try:
        found = msgpack.unpackb(
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
        reason = str(error) or type(error).__name__
        if "max_bin_len" in reason or "max_str_len" in reason:
            raise WireError("an array is too large", where="message", got=reason.partition(" ")[0] + " bytes",
                            expected=f"at most {limits.array_bytes} bytes") from error  # fmt: skip
        if "max_array_len" in reason or "max_map_len" in reason:
            raise too_many_entries(limits) from error
        step = NO_EXTENSIONS if "max_ext_len" in reason else ""
        if isinstance(error, UnicodeDecodeError):
            step = "texts in UTF-8, bytes as msgpack's bin (in Python use_bin_type=True)"
        raise WireError("the message is not sound msgpack", where="message", got=f"{len(data)} bytes: {short(reason)}",
                        expected="one msgpack value within the limits", next_step=step) from error  # fmt: skip
    return TreeReader(limits, MARKS, read or read_array, legacy=legacy).tree(found)


def read_array(found: Mapping[Any, Any], where: str, limits: Limits) -> np.ndarray | np.generic:
    """Read the array or number that a map stands for, as a read-only view; WireError when the map is not one."""
    named = {key.decode(errors="replace") if isinstance(key, bytes) else key: item for key, item in found.items()}
    if len(named) != len(found):
        raise WireError("a key comes twice", where=where, got=short(list(found)), expected="every key once")
    if "nd" in named:
        return _msgpack_numpy(named, where, limits)
    if "__npgeneric__" in named:
        mark, data, dtype = fields_of(named, ("__npgeneric__", "data", "dtype"), where)
    else:
        mark, data, dtype, shape = fields_of(named, ("__ndarray__", "data", "dtype", "shape"), where)
    if mark is not True:
        raise WireError("an array's mark must be true", where=where, got=short(mark), expected=True)
    if "__npgeneric__" in named:
        return scalar(number_dtype(dtype, where), data, where)
    return array(dtype, shape, data, where, limits)


def _msgpack_numpy(found: Mapping[str, Any], where: str, limits: Limits) -> np.ndarray | np.generic:
    if found["nd"] is False:
        _, dtype, data = fields_of(found, ("nd", "type", "data"), where)
        if isinstance(data, bytes) and is_encoded(data):  # numpy's bytes_, as HDF5 holds a picture
            return np.frombuffer(data, np.uint8)
        return array(dtype, [], data, where, limits)[()]
    # `kind` came with msgpack-numpy 0.4.4; V stands for structures and O for pickles
    mark, dtype, shape, data = fields_of(found, ("nd", "type", "shape", "data"), where, optional="kind")
    if shape == [] and isinstance(data, bytes) and is_encoded(data):
        return np.frombuffer(data, np.uint8)
    if mark is not True or found.get("kind") not in (b"", "", None):
        raise WireError("an array must be one of numbers", where=where,
                        got=f"nd {short(mark)}, kind {short(found.get('kind'))}", expected="nd true, kind empty",
                        next_step=CONVERT)  # fmt: skip
    return array(dtype, shape, data, where, limits)
