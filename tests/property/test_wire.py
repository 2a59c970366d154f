"""Properties of wire/: any tree comes back, and of any bytes whatever only a tree or a WireError."""

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightwam.errors import WireError
from lightwam.types import Observation
from lightwam.wire import json_arrays, openpi, robot_schemas, vla_eval, xpolicylab
from lightwam.wire.inspection import inspect
from lightwam.wire.robot_schema import fit_schema
from lightwam.wire.xpolicylab import Envelope

KINDS = ["|b1", "|u1", "<u2", "<i4", "<i8", "<f2", "<f4", ">f4", "<f8", ">i2"]
text = st.text(max_size=8)
array = st.sampled_from(KINDS).flatmap(
    lambda kind: arrays.arrays(np.dtype(kind), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
leaf = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | text | array
finite = st.floats(allow_nan=False, allow_infinity=False)
tree = st.recursive(
    leaf | finite, lambda one: st.lists(one, max_size=3) | st.dictionaries(text, one, max_size=3), max_leaves=8
)


def same(a: Any, b: Any) -> bool:
    """Equal, but for the order of an array's bytes; a number without axes may come back as an array without, or so."""
    if isinstance(a, (np.ndarray, np.generic)):
        alike = isinstance(b, (np.ndarray, np.generic)) and a.dtype.newbyteorder("=") == b.dtype
        return alike and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def through_xpolicylab(value: Any) -> Any:
    return xpolicylab.unpack(xpolicylab.pack(Envelope("infer", "1", "2", payload={"x": value}))).payload["x"]


WAYS: dict[str, Callable[[Any], Any]] = {
    "openpi": lambda value: openpi.unpack(openpi.pack(value)),
    "xpolicylab": through_xpolicylab,
    "vla-eval": lambda value: vla_eval.unpack(vla_eval.pack(vla_eval.Message("action", {"x": value}))).payload["x"],
    "json": lambda value: json_arrays.loads(json_arrays.dumps(value)),
}
READERS = {
    "openpi": openpi.unpack,
    "xpolicylab": xpolicylab.unpack,
    "vla-eval": vla_eval.unpack,
    "json": json_arrays.loads,
}


def depth(value: Any) -> int:
    if isinstance(value, (dict, list)):
        return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


@pytest.mark.parametrize("way", WAYS)
@given(value=tree)
@settings(max_examples=40)
def test_any_tree_comes_back(way: str, value: Any) -> None:
    if depth(value) <= 6:
        assert same(value, WAYS[way](value))


def survives(reader: str, data: bytes) -> None:
    """Reads `data`; a WireError is well, any other exception is not."""
    try:
        READERS[reader](data)
    except WireError as error:
        assert len(str(error)) < 3000


@pytest.mark.parametrize("reader", READERS)
@given(data=st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_are_a_tree_or_refused(reader: str, data: bytes) -> None:
    survives(reader, data)
    xpolicylab.pack(xpolicylab.refuse(data, "invalid_frame", "no"))


VALID = {
    "openpi": openpi.pack({"image": np.zeros((2, 3, 3), np.uint8), "one": np.float32(1), "state": [1.5, {"a": None}]}),
    "xpolicylab": xpolicylab.pack(
        Envelope("infer", "1", "2", payload={"image": np.zeros((2, 3, 3), np.uint8), "one": np.float32(1), "n": [1.5]})
    ),
    "vla-eval": vla_eval.pack(vla_eval.Message("observation", {"image": np.zeros((2, 3, 3), np.uint8), "n": [1.5]}, 3)),
    "json": json_arrays.dumps({"image": np.zeros((2, 3, 3), np.uint8), "one": np.float32(1), "state": [1.5, None]}),
}


@pytest.mark.parametrize("reader", READERS)
@given(draw=st.data())
@settings(max_examples=100)
def test_a_damaged_message_is_a_tree_or_refused(reader: str, draw: st.DataObject) -> None:
    data = bytearray(VALID[reader])
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    survives(reader, bytes(data[: draw.draw(st.integers(0, len(data)))]) if draw.draw(st.booleans()) else bytes(data))


@pytest.mark.parametrize("reader", READERS)
def test_no_message_can_be_cut_short(reader: str) -> None:
    for length in range(len(VALID[reader])):
        with pytest.raises(WireError):
            READERS[reader](VALID[reader][:length])


odd = st.recursive(
    leaf
    | st.floats()
    | st.sampled_from(["O", "|O", "V8", "f4,f4", "<f4", ">f4", "|u1", "uint8", "S4", b"", b"abcd", 1 << 62, -1])
    | st.sampled_from(["raw", "png", "jpeg", b"\x89PNG\r\n\x1a\n"]),
    lambda one: st.lists(one, max_size=3),
    max_leaves=4,
)
MARKS = {
    "openpi": [b"__ndarray__", "__ndarray__", b"__npgeneric__", b"data", "data", b"dtype", "dtype", b"shape", "shape"],
    "xpolicylab": [b"nd", "nd", b"type", "type", b"kind", b"shape", "shape", b"data", "data", b"complex"],
    "vla-eval": ["__image__", "__ndarray__", "format", "data", "dtype", "shape"],
}


@pytest.mark.parametrize("reader", MARKS)
@given(draw=st.data())
@settings(max_examples=100)
def test_a_hostile_array_is_an_array_or_refused(reader: str, draw: st.DataObject) -> None:
    fields = draw.draw(st.dictionaries(st.sampled_from(MARKS[reader]), odd | st.just(True), min_size=1))
    value: Any = {"x": fields}
    if reader == "xpolicylab":
        value = {"message_type": "infer", "message_id": "1", "evaluation_id": "2", "payload": value}
    if reader == "vla-eval":
        value = {"type": "observation", "payload": value, "seq": 1}
    # arrays inside have no encoding of their own here, so they become lists of numbers
    survives(reader, msgpack.packb(value, default=lambda one: one.tolist()))


@given(function=st.sampled_from([*xpolicylab.FUNCTIONS, "infer", "", None]) | tree, obs=odd | tree)
@settings(max_examples=100)
def test_any_call_is_a_call_or_refused(function: Any, obs: Any) -> None:
    try:
        call = xpolicylab.read_call({"func_name": function, "obs": obs})
    except xpolicylab.InvalidFrame as error:
        assert len(str(error)) < 3000
        return
    assert call.function in xpolicylab.FUNCTIONS
    assert all(type(number) is int for number in (*call.batch, *(call.environments or ())))
    seen = [*call.batch.values(), *([] if call.one is None else [call.one])]
    assert bool(seen) == call.function.startswith("update_obs") and all(isinstance(one, dict) for one in seen)


FITTED = [
    fit_schema(robot_schemas.load_schema("light-wam"), ("top",), 2, 2),
    fit_schema(robot_schemas.load_schema("xpolicylab"), ("top",), 14, 14),
    fit_schema(robot_schemas.load_schema("vla-eval"), ("top",), 2, 2),
]
KEYS = st.sampled_from(
    ["images", "top", "state", "states", "prompt", "vision", "color", "instruction", "left_arm_joint_state"]
)
near = st.recursive(
    leaf | st.floats() | st.just(np.zeros((2, 2, 3), np.uint8)) | st.just(np.zeros(2, np.float32)),
    lambda one: st.dictionaries(KEYS, one, max_size=4) | st.lists(one, max_size=2),
    max_leaves=12,
)


@given(message=near)
@settings(max_examples=100)
def test_any_message_is_an_observation_or_refused(message: Any) -> None:
    for schema in FITTED:
        try:
            seen = schema.observation(message)
        except WireError:
            assert not inspect(message, schema).fits
            continue
        assert isinstance(seen, Observation)
        assert inspect(message, schema).fits
