"""JSON with arrays, against PyPI json-numpy, and what is refused."""

import base64
import json
import tracemalloc
from typing import Any

import json_numpy
import numpy as np
import pytest

from lightwam.errors import WireError
from lightwam.wire import json_arrays
from lightwam.wire.limits import Limits

RNG = np.random.default_rng(0)
MESSAGE = {
    "top_cam": RNG.integers(0, 256, (24, 20, 3), np.uint8),
    "state": RNG.normal(size=14).astype(np.float32),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "one": np.float32(0.5),
    "yes": np.bool_(False),
    "instruction": "fold, [then] {place} the café",
    "num_steps": 10,
    "rest": [None, True, 1.5, []],
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def test_their_messages_are_read() -> None:
    assert same(json_arrays.loads(json_numpy.dumps(MESSAGE).encode()), MESSAGE)


def test_their_client_reads_our_messages() -> None:
    assert same(json_numpy.loads(json_arrays.dumps(MESSAGE)), MESSAGE)


def test_arrays_are_read_only() -> None:
    assert not json_arrays.loads(json_arrays.dumps(MESSAGE))["state"].flags.writeable


def one_array(**changes: Any) -> bytes:
    fields = {"__numpy__": base64.b64encode(bytes(8)).decode(), "dtype": "<f4", "shape": [2]} | changes
    return json.dumps({"x": {key: value for key, value in fields.items() if value is not None}}).encode()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dtype": "|O"}, "dtype"),
        ({"dtype": [["a", "<f4"]]}, "dtype"),
        ({"dtype": "f4,f4"}, "dtype"),
        ({"dtype": None}, "incomplete"),
        ({"shape": None}, "incomplete"),
        ({"shape": [3]}, "must fill"),
        ({"shape": []}, "must fill"),
        ({"shape": [1 << 70]}, "too large"),
        ({"shape": [-1, -2]}, "shape must be"),
        ({"__numpy__": "###"}, "base64"),
        ({"__numpy__": "AAAA\n"}, "base64"),
        ({"__numpy__": "AAA"}, "base64"),
        ({"__numpy__": "é"}, "base64"),
        ({"__numpy__": 5}, "must be text"),
        ({"more": 5}, "unknown keys"),
    ],
)
def test_invalid_arrays_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(WireError, match=what):
        json_arrays.loads(one_array(**changes))


def test_dtypes_by_name_and_in_openpis_form_are_read() -> None:
    values = np.array([0.5, -2.0], np.float32)
    text = base64.b64encode(values.tobytes()).decode()
    fields = {"dtype": "float32", "shape": [2]}
    sent = {"state": {"__numpy__": text, **fields}, "other": {"__ndarray__": True, "data": text, **fields}}
    found = json_arrays.loads(json.dumps(sent).encode())
    assert found["state"].tolist() == found["other"].tolist() == [0.5, -2.0]
    with pytest.raises(WireError, match="did you mean 'float32'"):
        json_arrays.loads(one_array(dtype="flaot32"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "must be one JSON value"),
        (b"\xff", "must be one JSON value"),
        (b"{", "must be one JSON value"),
        (b'{"a": 1} 2', "must be one JSON value"),
        ('{"a": 1}'.encode("utf-16"), "must be one JSON value"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'"\\ud800"', "must be Unicode"),
        (b'{"\\ud800": 1}', "must be Unicode"),
        (b"1" * 5000, "must be one JSON value"),
        (b"1" * 30, "too large"),
        (b"[" * 8000, "must be one JSON value"),
        (b"[" * 8000 + b"]" * 8000, "must be one JSON value|too deep"),
        (b"[" * 9 + b"]" * 9, "too deep"),
        (b"[" * 10**6, "too many"),
        (b"[" + b"[]," * 10**6 + b"[]]", "too many"),
        (json.dumps(dict.fromkeys(map(str, range(10**5)))).encode(), "too many"),
        (b'"' + b"a" * 5000 + b'"', "too long"),
    ],
)
def test_invalid_messages_are_refused(data: bytes, what: str) -> None:
    with pytest.raises(WireError, match=what):
        json_arrays.loads(data)


def test_a_nan_is_read_as_any_number_and_never_sent() -> None:
    assert np.isnan(json_arrays.loads(b'{"a": NaN}')["a"])
    with pytest.raises(WireError, match="cannot be sent"):
        json_arrays.dumps({"a": float("nan")})


@pytest.mark.parametrize("value", [np.array([object()]), np.zeros(2, "c8"), {1}, {"a": b"bytes"}, {(1, 2): 1}])
def test_values_that_cannot_be_sent_are_refused(value: Any) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        json_arrays.dumps({"x": value})


def test_every_limit_is_applied() -> None:
    packed = json_arrays.dumps({"state": np.zeros(8), "deep": [[1]], "text": "hello"})
    json_arrays.loads(packed)
    for small in ({"message_bytes": 20}, {"array_bytes": 63}, {"num_arrays": 0}, {"depth": 2}, {"num_items": 3},
                  {"text_chars": 4}):  # fmt: skip
        with pytest.raises(WireError):
            json_arrays.loads(packed, Limits(**small))


def test_a_hostile_message_costs_little_memory() -> None:
    data = b"[" + b"[]," * 10**6 + b"[]]"
    tracemalloc.start()
    with pytest.raises(WireError):
        json_arrays.loads(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data)
