"""XPolicyLab's messages (RoboTwin's since August 2026): an envelope in msgpack, arrays as `msgpack-numpy` has them.

Every request has its kind of answer, told apart by the request's id. What a client accepts was read off PyPI
`inspect-robots-xpolicylab` 0.1.0; it knows the error codes invalid_frame, unknown_message_type, timeout, infer_failed,
reset_failed and internal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lightwam.errors import WireError, did_you_mean
from lightwam.wire.limits import LIMITS, Limits, check_sendable, short
from lightwam.wire.msgpack_arrays import pack_msgpack, unpack_msgpack

ANSWERS: Mapping[str, str] = {
    "hello": "hello_ack",
    "prepare_case": "prepare_case_ack",
    "reset": "reset_result",
    "infer": "infer_result",
    "trial_end": "trial_end_ack",
    "heartbeat": "heartbeat_ack",
}
"""request -> its answer; `close` has none, and any request may be answered by `error`"""
TYPES = (*ANSWERS, *ANSWERS.values(), "close", "error")
MARK, DTYPE, KIND, SHAPE, DATA = b"nd", b"type", b"kind", b"shape", b"data"


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True)
class Envelope:
    """One message. The ids are the client's, and are given back as they came."""

    message_type: str
    message_id: str
    evaluation_id: str
    action_case_id: str | None = None
    trial_id: str | None = None
    repeat_index: int | None = None
    step: int = 0
    """of the trial, as the client counts"""
    sent_at: str = field(default_factory=_now)
    """ISO 8601"""
    payload: Mapping[str, Any] = field(default_factory=dict)


def pack(envelope: Envelope) -> bytes:
    """One binary frame; WireError for a payload that cannot be sent."""
    return pack_msgpack({one.name: getattr(envelope, one.name) for one in fields(envelope)}, _of_array)


def unpack(data: bytes, limits: Limits = LIMITS) -> Envelope:
    """The envelope of a frame, its arrays as read-only views; WireError, and nothing else, whatever the bytes are."""
    found = unpack_msgpack(data, limits, legacy=True)
    if not isinstance(found, dict):
        raise WireError("the message is not an envelope", where="message", got=type(found).__name__, expected="a map")
    kind = found.get("message_type")
    if kind not in TYPES:
        raise WireError("unknown message type", where="message_type", got=short(kind), expected=", ".join(TYPES),
                        next_step=did_you_mean(kind[:64], TYPES) if isinstance(kind, str) else "")  # fmt: skip
    payload = found.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise WireError("the payload is not a map", where="payload", got=type(payload).__name__, expected="a map")
    return Envelope(
        kind,
        _id(found, "message_id", needed=True) or "",
        _id(found, "evaluation_id", needed=True) or "",
        _id(found, "action_case_id"),
        _id(found, "trial_id"),
        _whole(found, "repeat_index"),
        _whole(found, "step") or 0,
        _id(found, "sent_at") or _now(),
        payload or {},
    )


def answer(request: Envelope, payload: Mapping[str, Any]) -> Envelope:
    """The answer to a request, with its ids; WireError for a message that is none (an answer, `close`, an error)."""
    if request.message_type not in ANSWERS:
        raise WireError("this message is not a request", where="message_type", got=request.message_type,
                        expected=", ".join(ANSWERS))  # fmt: skip
    return replace(request, message_type=ANSWERS[request.message_type], sent_at=_now(), payload=payload)


def refuse(
    request: Envelope | bytes | None, code: str, message: str, details: Mapping[str, Any] | None = None
) -> Envelope:
    """An error in answer to a request; to one that could not be read, `request` is its bytes.

    A client waits for an answer with its own id and passes over others, until its time is up: so of broken messages
    at least the ids are looked for.
    """
    about = _ids(request) if isinstance(request, bytes) else request
    payload = {"code": code, "message": message, "details": details or {}}
    return replace(about or Envelope("error", "", ""), message_type="error", sent_at=_now(), payload=payload)


def _ids(data: bytes) -> Envelope | None:
    """What can be known of a message that `unpack` refused: its ids, if it is a map that has them."""
    try:
        found = unpack_msgpack(data, LIMITS, lambda found, where, limits: None)
        return Envelope("error", _id(found, "message_id", needed=True) or "", _id(found, "evaluation_id") or "",
                        trial_id=_id(found, "trial_id"), step=_whole(found, "step") or 0)  # fmt: skip
    except WireError:
        return None


def _id(found: Any, key: str, *, needed: bool = False) -> str | None:
    value = found.get(key) if isinstance(found, dict) else None
    if value is None and not needed:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise WireError("an envelope's field is not text", where=key, got=short(value), expected="text")
    return str(value)


def _whole(found: Mapping[str, Any], key: str) -> int | None:
    value = found.get(key)
    if value is not None and type(value) is not int:
        raise WireError("an envelope's field is not a whole number", where=key, got=short(value), expected="an int")
    return value


def _of_array(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{type(value).__name__} has no place in a message")
    check_sendable(value)
    if isinstance(value, np.generic):
        return {MARK: False, DTYPE: value.dtype.str, DATA: value.tobytes()}
    return {MARK: True, DTYPE: value.dtype.str, KIND: b"", SHAPE: value.shape, DATA: value.tobytes()}
