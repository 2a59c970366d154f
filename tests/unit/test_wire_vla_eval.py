"""vla-eval's messages, against the published package's own, and what is refused."""

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from vla_eval.protocol import messages, numpy_codec

from lightwam.errors import WireError
from lightwam.types import Observation
from lightwam.wire import vla_eval
from lightwam.wire.limits import EncodedPicture, Limits
from lightwam.wire.robot_schema import fit_schema, schemas_of
from lightwam.wire.robot_schemas import load_schema, schemas_for
from lightwam.wire.vla_eval import Message, pack, unpack

PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
SEEN = {
    "images": {"agentview": PICTURE, "wrist": PICTURE[::-1].copy()},
    "task_description": "put the bowl on the plate",
    "states": np.linspace(0, 1, 8),
    "controller_states": np.zeros(8, np.float32),
}


@pytest.fixture(autouse=True)
def _png() -> Iterator[None]:
    """The codec's format is a global of theirs."""
    yield
    numpy_codec.set_image_format("png")


def theirs(kind: str, payload: Any, seq: int = 3) -> bytes:
    return messages.pack_message(messages.Message(messages.MessageType(kind), payload, seq))


@pytest.mark.parametrize("form", ["png", "raw"])
def test_their_observations_are_read(form: Any) -> None:
    numpy_codec.set_image_format(form)
    read = unpack(theirs("observation", SEEN))
    assert (read.kind, read.seq) == ("observation", 3)
    assert isinstance(read.payload["images"]["agentview"], EncodedPicture) == (form == "png")
    schema = fit_schema(load_schema("vla-eval-libero"), ("agentview", "wrist"), 8, 7)
    seen = schema.observation(read.payload)
    assert isinstance(seen, Observation) and seen.instruction == SEEN["task_description"]
    assert seen.frames["agentview"].tolist() == PICTURE.tolist()
    assert seen.frames["wrist"].tolist() == PICTURE[::-1].tolist()
    np.testing.assert_allclose(seen.state, SEEN["states"], atol=1e-6)


def test_their_jpegs_have_red_and_blue_where_they_belong() -> None:
    numpy_codec.set_image_format("jpeg")
    red = np.zeros((16, 16, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    picture = unpack(theirs("observation", {"x": red})).payload["x"].decoded("x")
    assert np.abs(picture.astype(int) - red).max() < 8


def test_they_read_our_answers() -> None:
    told = messages.unpack_message(pack(Message("action", {"actions": np.arange(7, dtype=np.float32)}, 9)))
    assert (told.type, told.seq) == (messages.MessageType.ACTION, 9)
    assert told.payload["actions"].dtype == np.float32 and told.payload["actions"].tolist() == list(range(7))


def test_every_type_of_theirs_is_known() -> None:
    assert sorted(vla_eval.KINDS) == sorted(kind.value for kind in messages.MessageType)
    assert vla_eval.PROTOCOL_VERSION == messages.PROTOCOL_VERSION


def picture(**fields: Any) -> bytes:
    whole = {"__image__": True, "format": "png", "data": b"\x89PNG\r\n\x1a\n", "shape": [4, 5, 3]} | fields
    whole = {key: value for key, value in whole.items() if value is not None}
    return msgpack.packb({"type": "observation", "payload": {"x": whole}, "seq": 1, "timestamp": 0.0})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (msgpack.packb([1]), "must be a map"),
        (msgpack.packb({"type": "observations", "payload": {}, "seq": 1}), "did you mean 'observation'"),
        (msgpack.packb({"type": ["hello"], "payload": {}, "seq": 1}), "type must be one of"),
        (msgpack.packb({"type": "hello", "seq": 1}), "payload must be a map"),
        (msgpack.packb({"type": "hello", "payload": {}, "seq": "1"}), "seq must be an integer"),
        (msgpack.packb({"type": "hello", "payload": {}, "seq": True}), "seq must be an integer"),
        (picture(data=b"GIF89a"), "a PNG or JPEG"),
        (picture(data="text"), "a PNG or JPEG"),
        (picture(format="webp"), "format png, jpeg or raw"),
        (picture(__image__=1), "__image__ true"),
        (picture(shape=None), "incomplete"),
        (picture(format="raw", data=bytes(60), dtype="|O"), "one of numbers"),
        (picture(format="raw", data=bytes(60)), "one of numbers"),
        (picture(format="raw", data=bytes(59), dtype="|u1"), "fill its shape"),
        (picture(format="raw", data=bytes(60), dtype="|u1", shape=[1 << 40]), "too large"),
    ],
)
def test_a_wrong_message_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(WireError, match=told):
        unpack(data)


def test_a_message_over_the_limits_is_refused() -> None:
    with pytest.raises(WireError, match="too large"):
        unpack(theirs("observation", SEEN), Limits(message_bytes=100))


def test_another_version_of_the_protocol_is_refused() -> None:
    vla_eval.check_hello({"protocol_version": 1})
    vla_eval.check_hello({})
    with pytest.raises(WireError, match="unknown version"):
        vla_eval.check_hello({"protocol_version": 2})


@pytest.mark.parametrize(
    ("cameras", "dims", "names"),
    [
        (("agentview", "wrist"), (8, 7), ["vla-eval-libero", "vla-eval"]),
        (("agentview",), (0, 7), ["vla-eval-libero", "vla-eval"]),
        (("agentview", "wrist"), (8, 8), ["vla-eval"]),
        (("head_camera", "left_camera", "right_camera"), (14, 14), ["vla-eval-robotwin", "vla-eval"]),
        (("top",), (4, 4), ["vla-eval"]),
    ],
)
def test_the_protocol_has_schemas_of_its_own(cameras: Any, dims: Any, names: list[str]) -> None:
    """LIBERO's gripper is converted whether or not the run has a state; other protocols do not see these schemas."""
    fitting = schemas_for((), cameras, *dims, {})
    assert [schema.name for schema in schemas_of(fitting, "vla-eval")] == names
    assert not {schema.name for schema in schemas_of(fitting, "openpi")} & set(names)


def test_a_schema_that_was_named_is_used_by_every_protocol() -> None:
    named = schemas_for(("light-wam",), ("top",), 4, 4, {})
    assert schemas_of(named, "vla-eval") == schemas_of(named, "xpolicylab") == named
    named = schemas_for(("vla-eval",), ("top",), 4, 4, {})
    assert schemas_of(named, "openpi") == named


def test_libero_and_robotwin_get_actions_in_their_units() -> None:
    libero = fit_schema(load_schema("vla-eval-libero"), ("agentview", "wrist"), 8, 7)
    assert [row[6] for row in libero.actions(np.eye(7, dtype=np.float32)[[0, 6]])] == [1.0, -1.0]
    cameras = ("head_camera", "left_camera", "right_camera")
    robotwin = fit_schema(load_schema("vla-eval-robotwin"), cameras, 14, 14)
    seen = {"images": dict.fromkeys(cameras, PICTURE), "task_description": "x", "joint_state": np.arange(14.0)}
    assert robotwin.observation(seen).state.tolist() == list(range(14))
    assert robotwin.actions(np.ones((2, 14), np.float32)).tolist() == [[1.0] * 14] * 2
