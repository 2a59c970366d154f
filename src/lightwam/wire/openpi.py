"""openpi's messages: msgpack, arrays as maps with bytes as keys, as PyPI `openpi-client` 0.1.2 has them.

The server speaks first, with a map of metadata. Then every message is an observation, and every answer a map with
`actions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightwam.errors import WireError
from lightwam.wire.limits import LIMITS, Limits
from lightwam.wire.msgpack_arrays import pack_msgpack, unpack_msgpack

MESSAGE_BYTES = "message_bytes"
"""key of our servers' greeting: the largest message they accept"""
N_OBS_STEPS = "n_obs_steps"
"""key of a greeting: control steps that the policy acts on, which messages must then have (docs/serving.md)"""
MAX_OBS_STEPS = 64
"""the longest history sent to a server"""


def obs_steps(greeting: Mapping[str, Any], url: str) -> int:
    """Return `n_obs_steps` of a server's greeting, 0 if it knows nothing of episodes; WireError if impossible."""
    steps = greeting.get(N_OBS_STEPS, 0)
    if type(steps) is not int or not 0 <= steps <= MAX_OBS_STEPS:
        what = f"{N_OBS_STEPS} of the server's greeting must be an integer from 1 to {MAX_OBS_STEPS}"
        raise WireError(what, where=url, got=steps)
    return steps


def pack(tree: Any) -> bytes:
    """Encode a tree of maps, lists, texts, numbers and arrays as one message; WireError for anything else."""
    return pack_msgpack(tree, _as_map)


def unpack(data: bytes, limits: Limits = LIMITS) -> Any:
    """Decode a message, its arrays as read-only views; WireError, and nothing else, whatever the bytes are."""
    return unpack_msgpack(data, limits)


def _as_map(value: np.ndarray | np.generic) -> dict[bytes, Any]:
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
