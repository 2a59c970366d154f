"""XPolicyLab's messages (RoboTwin's since August 2026): an envelope in msgpack, arrays as `msgpack-numpy` has them.

Every request has its type of answer, which bears the request's id. The error codes that a client knows are
invalid_frame, unknown_message_type, timeout, infer_failed, reset_failed and internal (source: PyPI
`inspect-robots-xpolicylab` 0.1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from lightwam.errors import WireError, did_you_mean
from lightwam.wire.limits import LIMITS, Limits, short
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


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True)
class Envelope:
    """A message. The ids are the client's; an answer has those of its request."""

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
    """Encode a message as one binary frame; WireError for a payload that cannot be sent."""
    return pack_msgpack(vars(envelope), _as_map)


def unpack(data: bytes, limits: Limits = LIMITS) -> Envelope:
    """Decode a frame, its arrays as read-only views; WireError, and nothing else, whatever the bytes are."""
    table = unpack_msgpack(data, limits, swapped_jpeg=True)
    if not isinstance(table, dict):
        raise WireError("the message must be an envelope", where="message", got=type(table).__name__, expected="a map")
    kind = table.get("message_type")
    if kind not in TYPES:
        what, step = f"message_type must be one of {', '.join(TYPES)}", did_you_mean(str(kind)[:64], TYPES)
        raise WireError(what, where="message_type", got=short(kind), next_step=step)
    payload = table.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise WireError("the payload must be a map", where="payload", got=type(payload).__name__)
    return Envelope(
        kind,
        _text(table, "message_id", required=True) or "",
        _text(table, "evaluation_id", required=True) or "",
        _text(table, "action_case_id"),
        _text(table, "trial_id"),
        _integer(table, "repeat_index"),
        _integer(table, "step") or 0,
        _text(table, "sent_at") or _now(),
        payload or {},
    )


def answer(request: Envelope, payload: Mapping[str, Any]) -> Envelope:
    """Make the answer to a request, with its ids; WireError for a message without answer (`close`, an answer)."""
    if (kind := request.message_type) not in ANSWERS:
        raise WireError("not a request", where="message_type", got=kind, expected=", ".join(ANSWERS))
    return replace(request, message_type=ANSWERS[kind], sent_at=_now(), payload=payload)


def refuse(
    request: Envelope | bytes | None, code: str, message: str, details: Mapping[str, Any] | None = None
) -> Envelope:
    """Make the error that answers a request, given as bytes if it could not be decoded.

    A client waits for an answer with its own id and ignores others until its timeout, so the ids of broken messages are
    recovered where possible.
    """
    request = _ids(request) if isinstance(request, bytes) else request
    payload = {"code": code, "message": message, "details": details or {}}
    return replace(request or Envelope("error", "", ""), message_type="error", sent_at=_now(), payload=payload)


def _ids(data: bytes) -> Envelope | None:
    """Decode only the ids of a message that `unpack` refused; None if it has none."""
    try:
        table = unpack_msgpack(data, LIMITS, lambda table, where, limits: None)
        message_id, trial_id = _text(table, "message_id", required=True) or "", _text(table, "trial_id")
        evaluation_id, step = _text(table, "evaluation_id") or "", _integer(table, "step") or 0
        return Envelope("error", message_id, evaluation_id, trial_id=trial_id, step=step)
    except WireError:
        return None


def _text(table: Any, key: str, *, required: bool = False) -> str | None:
    value = table.get(key) if isinstance(table, dict) else None
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise WireError("an envelope's field must be text", where=key, got=short(value))
    return str(value)


def _integer(table: Mapping[str, Any], key: str) -> int | None:
    value = table.get(key)
    if value is not None and type(value) is not int:
        raise WireError("an envelope's field must be an integer", where=key, got=short(value))
    return value


def _as_map(value: np.ndarray | np.generic) -> dict[bytes, Any]:
    dtype, data = value.dtype.str, value.tobytes()
    if isinstance(value, np.generic):
        return {b"nd": False, b"type": dtype, b"data": data}
    return {b"nd": True, b"type": dtype, b"kind": b"", b"shape": value.shape, b"data": data}
