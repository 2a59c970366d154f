"""JSON with arrays as base64, as PyPI `json-numpy` 2.1 writes and reads it: what HTTP clients of `/act` send.

openpi's own form is read as well, with base64 for its bytes: {"__ndarray__": true, "data", "dtype", "shape"}.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightwam.errors import WireError
from lightwam.wire.dtypes import array, check_sendable
from lightwam.wire.limits import LIMITS, EntryCounter, Limits, TreeReader, fields_of, short, too_many_entries

DATA, DTYPE, SHAPE = "__numpy__", "dtype", "shape"
OPENPI = "__ndarray__"


def dumps(tree: Any) -> bytes:
    """Encode a tree of maps, lists, texts, finite numbers and arrays as UTF-8 JSON; WireError for anything else."""
    try:
        return json.dumps(tree, default=_as_map, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:  # ValueError: a circle, NaN
        expected = "maps, lists, texts, finite numbers and arrays"
        raise WireError("this cannot be sent", got=short(error), expected=expected) from error


def loads(data: bytes, limits: Limits = LIMITS) -> Any:
    """Decode a message, its arrays as read-only views; WireError, and nothing else, whatever the bytes are."""
    limits.check_size(data)
    # Python's parser would make 64 bytes of every two; signs inside texts count too, hence the room for a long one
    if sum(map(data.count, (b",", b"[", b"{"))) > limits.num_items + limits.text_chars:
        raise too_many_entries(limits)
    try:
        tree = json.loads(data.decode(), object_pairs_hook=EntryCounter(limits).pairs)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number of thousands of digits
        got = f"{len(data)} bytes: {short(str(error))}"
        raise WireError("the message must be one JSON value in UTF-8", got=got) from error
    return TreeReader(limits, (DATA, OPENPI), _read_array).tree(tree)


def _as_map(value: Any) -> dict[str, Any]:
    check_sendable(value)
    return {DATA: base64.b64encode(value.tobytes()).decode(), DTYPE: value.dtype.str, SHAPE: value.shape}


def _read_array(table: Mapping[Any, Any], where: str, limits: Limits) -> np.ndarray | np.generic:
    if OPENPI in table:
        mark, text, dtype, shape = fields_of(table, (OPENPI, "data", DTYPE, SHAPE), where)
        if mark is not True:
            raise WireError(f"{OPENPI} must be true", where=where, got=short(mark))
    else:
        text, dtype, shape = fields_of(table, (DATA, DTYPE, SHAPE), where)
    if not isinstance(text, str):
        raise WireError("an array's data must be text, in base64", where=where, got=type(text).__name__)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise WireError("an array's data must be base64", where=where, got=short(str(error))) from error
    read = array(dtype, shape, data, where, limits)
    return read if shape else read[()]
