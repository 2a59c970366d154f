"""openpi's messages: msgpack, arrays as maps with bytes as keys, as PyPI `openpi-client` 0.1.2 has them.

The client's first word is the server's: a map of metadata. Then every message is an observation, every answer a map
with `actions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightwam.errors import WireError
from lightwam.wire.limits import LIMITS, Limits, array, fields_of, number_kind, scalar, sendable, short
from lightwam.wire.packed import packed, unpacked

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"


def pack(tree: Any) -> bytes:
    """A tree of maps, lists, texts, numbers and arrays as one message; WireError for anything else."""
    return packed(tree, _of_array)


def unpack(data: bytes, limits: Limits = LIMITS) -> Any:
    """The tree of a message, its arrays as read-only views; WireError, and nothing else, whatever the bytes are."""
    return unpacked(data, limits, (ARRAY, SCALAR), _read_array)


def _of_array(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{type(value).__name__} has no place in a message")
    sendable(value)
    if isinstance(value, np.generic):
        return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}
    return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}


def _read_array(found: Mapping[Any, Any], where: str, limits: Limits) -> np.ndarray | np.generic:
    if ARRAY in found:
        mark, data, dtype, shape = fields_of(found, (ARRAY, DATA, DTYPE, SHAPE), where)
    else:
        mark, data, dtype = fields_of(found, (SCALAR, DATA, DTYPE), where)
    if mark is not True:
        raise WireError("an array is not marked as one", where=where, got=short(mark), expected=True)
    return (
        array(dtype, shape, data, where, limits) if ARRAY in found else scalar(number_kind(dtype, where), data, where)
    )
