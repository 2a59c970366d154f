"""vla-eval's messages: a type, a payload and a number in msgpack, as PyPI `vla-eval` 0.8.0 has them.

The client speaks first, with `hello`. Then every `observation` is answered by one `action`, which is executed before
the next one; `episode_start` and `episode_end` have no answer, and an `error` ends no connection. An answer has the
number of its request. Arrays are openpi's with texts as keys, and pictures may be `__image__` maps with a PNG.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightwam.errors import WireError, did_you_mean
from lightwam.wire.limits import LIMITS, Limits, short
from lightwam.wire.msgpack_arrays import pack_msgpack, unpack_msgpack

PATH = "/vla-eval"
"""path of the websocket, on the port where openpi's clients have all others"""
PROTOCOL_VERSION = 1
KINDS = ("hello", "observation", "action", "episode_start", "episode_end", "error")
HELLO, OBSERVATION, ACTION, START, END, ERROR = KINDS
OBSERVATION_PARAMS: Mapping[str, Mapping[str, bool]] = {"vla-eval-libero": {"quat_no_antipodal": True}}
"""robot schema -> settings of its benchmarks: axis times angle up to 2 pi, as robosuite and LIBERO's data have it"""


@dataclass(frozen=True)
class Message:
    """A message of either side."""

    kind: str
    """one of KINDS; its key is `type`"""
    payload: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0
    """the client counts its messages; an answer has the number of its request"""


def pack(message: Message) -> bytes:
    """Encode a message as one binary frame; WireError for a payload that cannot be sent."""
    table = {"type": message.kind, "payload": message.payload, "seq": message.seq, "timestamp": time.time()}
    return pack_msgpack(table, _as_map)


def unpack(data: bytes, limits: Limits = LIMITS) -> Message:
    """Decode a frame, its arrays as read-only views; WireError, and nothing else, whatever the bytes are."""
    table = unpack_msgpack(data, limits)
    if not isinstance(table, dict):
        raise WireError("the message must be a map", where="message", got=type(table).__name__)
    kind, payload, seq = table.get("type"), table.get("payload"), table.get("seq", 0)
    if kind not in KINDS:
        what, step = f"type must be one of {', '.join(KINDS)}", did_you_mean(str(kind)[:64], KINDS)
        raise WireError(what, where="type", got=short(kind), next_step=step)
    if not isinstance(payload, dict):
        raise WireError("the payload must be a map", where="payload", got=short(payload))
    if type(seq) is not int:
        raise WireError("seq must be an integer", where="seq", got=short(seq))
    return Message(kind, payload, seq)


def check_hello(payload: Mapping[str, Any]) -> None:
    """Raise WireError for a client of another version of the protocol."""
    version = payload.get("protocol_version", PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION:
        step = f"a vla-eval with protocol_version {PROTOCOL_VERSION}, such as 0.8.0"
        where, got = "payload.protocol_version", short(version)
        raise WireError("unknown version of vla-eval's protocol", where=where, got=got, next_step=step)


def _as_map(value: np.ndarray | np.generic) -> dict[str, Any]:
    return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": value.shape}
