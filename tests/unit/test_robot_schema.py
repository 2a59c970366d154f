"""Robot schemas: observations from messages, answers, fitting to a run, and files that declare one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightwam.config import recipes
from lightwam.errors import ConfigError, WireError
from lightwam.sim.libero.conversion import to_libero_gripper
from lightwam.types import Observation
from lightwam.wire import openpi, robot_schemas
from lightwam.wire.inspection import inspect
from lightwam.wire.robot_schema import ActionPart, RobotSchema, StatePart, Unit, fit_schema

EXAMPLE = Path(__file__).parents[1] / "data" / "robot_schemas" / "metaworld_xpolicylab.toml"
PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
ROBOTWIN = ("head_camera", "left_camera", "right_camera")


def libero() -> tuple[RobotSchema, dict[str, Any]]:
    message = {
        "observation/image": PICTURE,
        "observation/wrist_image": PICTURE + 1,
        "observation/state": np.arange(8.0),
        "prompt": "put the bowl on the plate",
    }
    return fit_schema(robot_schemas.load_schema("libero"), ("agentview", "wrist"), 8, 7), message


def test_libero_clients_are_read() -> None:
    schema, message = libero()
    seen = schema.observation(message)
    assert seen.frames["agentview"] is PICTURE
    assert np.array_equal(seen.frames["wrist"], PICTURE + 1)
    assert seen.state.dtype == np.float32
    assert seen.state.tolist() == list(range(8))
    assert seen.instruction == "put the bowl on the plate"


def test_libero_clients_get_the_gripper_in_the_simulators_units() -> None:
    chunk = np.zeros((3, 7), np.float32)
    chunk[:, 6] = [1, 0, 0.25]  # open, closed
    told = libero()[0].actions(chunk)
    assert isinstance(told, np.ndarray)
    assert told[:, 6].tolist() == [to_libero_gripper(value, "linear") for value in (1.0, 0.0, 0.25)] == [-1, 1, 0.5]
    assert not told[:, :6].any()
    assert chunk[:, 6].tolist() == [1, 0, 0.25], "the chunk was written into"


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_aloha_clients_may_send_either_layout(layout: str) -> None:
    schema = fit_schema(robot_schemas.load_schema("aloha"), ROBOTWIN, 14, 14, {
        "cam_high": "head_camera", "cam_left_wrist": "left_camera", "cam_right_wrist": "right_camera"})  # fmt: skip
    sent = PICTURE if layout == "HWC" else PICTURE.transpose(2, 0, 1)
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    seen = schema.observation({"images": dict.fromkeys(cameras, sent), "state": np.zeros(14), "prompt": "x"})
    assert list(seen.frames) == list(ROBOTWIN)
    assert all(np.array_equal(picture, PICTURE) for picture in seen.frames.values())


def test_droid_clients_state_is_joined() -> None:
    schema = fit_schema(robot_schemas.load_schema("droid"), ("exterior_image_1_left", "wrist_image_left"), 8, 8)
    seen = schema.observation({
        "observation/exterior_image_1_left": PICTURE,
        "observation/wrist_image_left": PICTURE,
        "observation/joint_position": np.arange(7),
        "observation/gripper_position": np.array([0.5], ">f8"),
        "prompt": "x",
    })  # fmt: skip
    assert seen.state.tolist() == [0, 1, 2, 3, 4, 5, 6, 0.5]


@pytest.mark.parametrize("key", ["prompt", "task_description", "instruction"])
def test_light_wams_client_uses_the_runs_camera_names(key: str) -> None:
    schema = fit_schema(robot_schemas.load_schema("light-wam"), ("top",), 2, 2)
    seen = schema.observation({"images": {"top": PICTURE.transpose(2, 0, 1)}, "state": [0.5, 1], key: "reach"})
    assert np.array_equal(seen.frames["top"], PICTURE)
    assert (seen.state.tolist(), seen.instruction) == ([0.5, 1], "reach")


def test_yam_clients_have_cameras_at_the_top() -> None:
    schema = fit_schema(robot_schemas.load_schema("yam"), ("top_cam", "left_cam"), 14, 14)
    seen = schema.observation(
        {"top_cam": PICTURE, "left_cam": PICTURE, "state": np.zeros(14), "instruction": "x", "num_steps": 10}
    )
    assert sorted(seen.frames) == ["left_cam", "top_cam"]


def test_xpolicylab_clients_get_actions_as_parts() -> None:
    schema = fit_schema(robot_schemas.load_schema("xpolicylab"), ROBOTWIN, 14, 14)
    cameras = ("cam_head", "cam_left_wrist", "cam_right_wrist")
    state = {part.key: np.full(part.length, i) for i, part in enumerate(schema.action)}
    seen = schema.observation({
        "instructions": ["stack", "pile up"], "instruction": None, "state": state,
        "vision": {camera: {"color": PICTURE} for camera in cameras}, "env_idx": 0,
    })  # fmt: skip
    assert seen.instruction == "stack"
    assert seen.state.tolist() == [0] * 6 + [1] + [2] * 6 + [3]
    chunk = np.arange(28, dtype=np.float32).reshape(2, 14)
    told = schema.actions(chunk)
    assert isinstance(told, list)
    assert [list(step) for step in told] == [[part.key for part in schema.action]] * 2
    assert np.array_equal(np.stack([np.concatenate(list(step.values())) for step in told]), chunk)
    assert told[1]["right_ee_joint_state"].tolist() == [27]


def test_the_example_maps_the_demos_run_onto_xpolicylab() -> None:
    demo = recipes.demo()
    cameras = tuple(place.camera for place in demo.codec.places)
    schema = fit_schema(robot_schemas.read_schema(EXAMPLE), cameras, demo.model.state_dim, demo.model.action_dim)
    seen = schema.observation({
        "vision": {"cam_head": {"color": PICTURE}, "cam_left_wrist": {"color": PICTURE + 1}},
        "state": {"arm_joint_state": np.arange(4.0)},
        "instruction": "open the drawer",
    })  # fmt: skip
    assert {camera: int(picture[0, 0, 0]) for camera, picture in seen.frames.items()} == {"corner4": 0, "corner": 1}
    told = schema.actions(np.ones((2, 4), np.float32))
    assert [{key: value.tolist() for key, value in step.items()} for step in told] == [{"arm_joint_state": [1] * 4}] * 2


@pytest.mark.parametrize("name", robot_schemas.BUILTIN_SCHEMAS)
def test_message_and_observation_are_inverses(name: str) -> None:
    """Both directions of a schema, with everything else that it may declare."""
    schema, rng = robot_schemas.load_schema(name), np.random.default_rng(0)
    length = sum(part.length or 3 for part in schema.state)
    odd = replace(
        schema, turned=True, state_units=(Unit(1, 2.0, -3.0),), action_units=(Unit(-1, -2.0, 1.0),), action=()
    )
    fit = fit_schema(odd, tuple(schema.cameras) or ("top", "left"), length, schema.action_dim or length)
    frames = {camera: rng.integers(0, 256, (4, 5, 3), np.uint8) for camera in fit.cameras}
    told = Observation(frames, rng.normal(size=length).astype(np.float32), "open the drawer")
    read = fit.observation(fit.message(told))
    assert read.instruction == told.instruction and read.frames.keys() == frames.keys()
    assert all(np.array_equal(read.frames[camera], frames[camera]) for camera in frames)
    np.testing.assert_allclose(read.state, told.state, atol=1e-6)
    chunk = rng.normal(size=(4, fit.action_dim)).astype(np.float32)
    np.testing.assert_allclose(fit.chunk(fit.actions(chunk)), chunk, atol=1e-6)


@pytest.mark.parametrize("name", ["light-wam", "libero"])
def test_a_message_has_the_history_that_the_policy_asks_for(name: str) -> None:
    schema, rng = replace(robot_schemas.load_schema(name), turned=True), np.random.default_rng(0)
    fit = fit_schema(schema, tuple(schema.cameras) or ("top",), 8, schema.action_dim or 7)

    def moment(step: int) -> Observation:
        frames = {camera: rng.integers(0, 256, (4, 5, 3), np.uint8) for camera in fit.cameras}
        return Observation(frames, rng.normal(size=8).astype(np.float32), "open the drawer", episode=7, step=step)

    told = replace(moment(1), history=(first := moment(0), first))
    assert not {"episode", "step", "history"} & fit.message(told).keys(), "other servers get what they know"
    asks = replace(fit, n_obs_steps=3)
    message = openpi.unpack(openpi.pack(asks.message(told)))
    read = asks.observation(message)
    assert (read.episode, read.step, read.instruction) == (7, 1, "open the drawer")
    assert [(each.episode, each.step, each.instruction) for each in read.history] == [(7, 0, "open the drawer")] * 2
    for ours, theirs in zip((*read.history, read), (*told.history, told), strict=True):
        np.testing.assert_array_equal(ours.state, theirs.state)
        assert all(np.array_equal(ours.frames[camera], theirs.frames[camera]) for camera in fit.cameras)
    assert fit.observation(message).history == (), "nor do others read it"
    assert [line for line in inspect(message, asks).unused] == []
    for change, problem in (
        ({"history": message["history"][1:]}, r"a list of the 2 observations before[\s\S]*got: 1 observations"),
        ({"history": None}, r"a list of the 2 observations before[\s\S]*got: NoneType"),
        ({"step": -1}, "step must be an integer, at least 0"),
        ({"episode": True}, "episode must be an integer, at least 0"),
    ):
        with pytest.raises(WireError, match=problem):
            asks.observation(message | change)
    with pytest.raises(WireError, match="'history' is missing"):
        asks.observation({key: value for key, value in message.items() if key != "history"})


def test_pictures_upside_down_are_turned() -> None:
    schema, message = libero()
    for layout, sent in (("HWC", PICTURE), ("CHW or HWC", PICTURE.transpose(2, 0, 1))):
        turned = replace(schema, turned=True, pictures=layout)
        seen = turned.picture(message | {"observation/image": sent}, "agentview")
        assert np.array_equal(seen, PICTURE[::-1, ::-1])


def test_units_are_converted_in_both_directions() -> None:
    units = (Unit(-1, 2.0, -1.0),)
    schema = RobotSchema("x", (("prompt",),), (StatePart(("state",)),), state_units=units, action_units=units)
    assert schema.full_state({"state": np.array([5.0, -1.0])}).tolist() == [5, 0]
    assert schema.full_state({"state": np.array([5.0, 1.0])}).tolist() == [5, 1]
    assert schema.actions(np.array([[5, 0], [5, 1]], np.float32)).tolist() == [[5, -1], [5, 1]]  # type: ignore[union-attr]
    with pytest.raises(WireError, match="must have a number at 2"):
        replace(schema, state_units=(Unit(2, 1.0, 0.0),)).full_state({"state": np.zeros(2)})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"observation/image": None}, ["'observation/image' is missing", "did you mean 'observation/imag'"]),
        (
            {"observation/image": (PICTURE / 255).astype(np.float32)},
            ["must be uint8", "(255 * x)", "observation/image"],
        ),
        ({"observation/image": PICTURE.tolist()}, ["must be uint8", "list"]),
        ({"observation/image": PICTURE[None]}, ["wrong shape", "(1, 4, 5, 3)", "no batch"]),
        ({"observation/image": PICTURE.transpose(2, 0, 1)}, ["wrong shape", "(height, width, 3)"]),
        ({"observation/image": PICTURE[:0]}, ["wrong shape"]),
        ({"observation/image": np.zeros((4, 5, 4), np.uint8)}, ["wrong shape", "fourth channel"]),
        ({"observation/state": np.zeros(7)}, ["wrong length", "got: 7", "expected: 8"]),
        ({"observation/state": np.zeros((1, 8))}, ["must be one vector", "(1, 8)"]),
        ({"observation/state": np.zeros(8, bool)}, ["must be an array of numbers", "bool"]),
        ({"observation/state": ["1"] * 8}, ["must be an array of numbers"]),
        ({"observation/state": {"a": 1}}, ["must be an array of numbers"]),
        ({"observation/state": np.array([0, 1, 2, 3, 4, 5, 6, np.nan])}, ["must be finite", "observation/state"]),
        ({"observation/state": np.array([0, 1, 2, 3, 4, 5, 6, 1e300])}, ["must be finite"]),
        ({"prompt": None}, ["instruction is missing", "expected: prompt"]),
        ({"prompt": 5}, ["must be text", "int"]),
        ({"prompt": b"bytes"}, ["must be text"]),
    ],
)
def test_a_wrong_message_is_refused_with_its_key(changes: dict[str, Any], told: list[str]) -> None:
    schema, message = libero()
    wrong = {key: value for key, value in (message | changes).items() if value is not None}
    if "observation/image" not in wrong:
        wrong["observation/imag"] = PICTURE
    with pytest.raises(WireError) as refused:
        schema.observation(wrong)
    for words in told:
        assert words in str(refused.value)


@pytest.mark.parametrize("message", [None, [], "text", 5, {}, np.zeros(3)])
def test_a_message_that_is_not_a_map_is_refused(message: Any) -> None:
    schema, _ = libero()
    for read in (schema.observation, schema.instruction):
        with pytest.raises(WireError):
            read(message)


def test_the_error_for_a_missing_nested_key_has_its_path() -> None:
    schema = fit_schema(robot_schemas.load_schema("aloha"), ("cam_high",), 14, 14)
    with pytest.raises(WireError, match="images") as refused:
        schema.picture({"images": {"cam_hihg": PICTURE}}, "cam_high")
    assert (refused.value.where, refused.value.next_step) == ("images", "did you mean 'cam_hihg'?")
    with pytest.raises(WireError, match="a map with 'cam_high' is missing"):
        schema.picture({"images": PICTURE}, "cam_high")


def test_errors_stay_short_for_many_long_keys() -> None:
    schema, _ = libero()
    with pytest.raises(WireError) as refused:
        schema.observation({f"{i}" * 4000: 0 for i in range(4000)})
    assert len(str(refused.value)) < 6000


@pytest.mark.parametrize(
    ("name", "cameras", "state", "action", "renames", "told"),
    [
        ("libero", ("corner",), 8, 7, {}, ["no such camera", "--renames agentview corner;", "docs/serving_robots.md"]),
        ("libero", ("agentview", "wrist"), 4, 7, {}, ["state does not fit", "got: 4", "observation/state (8)"]),
        ("libero", ("agentview", "wrist"), 8, 4, {}, ["action does not fit", "got: 4", "expected: 7"]),
        ("xpolicylab", ROBOTWIN, 14, 13, {}, ["action does not fit", "expected: 14"]),
        ("droid", ("wrist_image_left",), 7, 8, {}, ["state does not fit"]),
        ("aloha", ("top",), 14, 14, {"cam_high": "tpo"}, ["run has no such camera", "did you mean 'top'"]),
        ("aloha", ("top",), 14, 14, {"cam_hihg": "top"}, ["schema has no such camera", "cam_hihg"]),
        ("aloha", ("top",), 14, 14, {"cam_high": "top", "cam_low": "top"}, ["two cameras are renamed"]),
        ("aloha", ("cam_high", "cam_low"), 14, 14, {"cam_high": "cam_low"}, ["would be one picture"]),
    ],
)
def test_a_schema_that_does_not_fit_the_run_is_refused(
    name: str, cameras: tuple[str, ...], state: int, action: int, renames: dict[str, str], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        fit_schema(robot_schemas.load_schema(name), cameras, state, action, renames)
    for words in told:
        assert words in str(refused.value)


def test_units_of_numbers_that_a_run_lacks_are_refused() -> None:
    schema = replace(robot_schemas.load_schema("light-wam"), state_units=(Unit(7, 1.0, 0.0),))
    with pytest.raises(ConfigError, match="must be 0 to 3"):
        fit_schema(schema, ("top",), 4, 4)


def test_the_length_of_one_state_part_is_computed() -> None:
    schema = replace(robot_schemas.load_schema("light-wam"), state=(StatePart(("arm",)), StatePart(("hand",), 2)))
    assert fit_schema(schema, ("top",), 8, 8).state[0].length == 6
    two = replace(schema, state=(StatePart(("arm",)), StatePart(("hand",))))
    assert fit_schema(two, ("top",), 8, 8).state == two.state
    with pytest.raises(ConfigError, match="state does not fit"):
        fit_schema(schema, ("top",), 2, 2)


def test_an_unknown_schema_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'libero'"):
        robot_schemas.load_schema("librero")


FILE = {
    "name": '"cart"',
    "prompt": '["task", ["text", "goal"]]',
    "state": '[{ keys = "joints", length = 6 }, { keys = ["hand", "width"] }]',
    "any_camera": '["images", "{camera}"]',
    "pictures": '"CHW or HWC"',
    "turned": "true",
    "action": '[{ key = "arm", length = 6 }, { key = "hand", length = 1 }]',
    "action_dim": "7",
    "state_units": "[{ dim = -1, scale = 100, offset = 0.5 }]",
    "cameras": '{ front = "front_rgb" }',
}


def written(folder: Path, changes: dict[str, str | None]) -> Path:
    """A file that declares a schema, with some keys changed; None leaves one out."""
    path = folder / "cart.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in (FILE | changes).items() if value is not None))
    return path


def test_a_file_declares_everything(tmp_path: Path) -> None:
    assert robot_schemas.read_schema(written(tmp_path, {})) == RobotSchema(
        "cart",
        prompt=(("task",), ("text", "goal")),
        state=(StatePart(("joints",), 6), StatePart(("hand", "width"))),
        cameras={"front": ("front_rgb",)},
        any_camera=("images", "{camera}"),
        pictures="CHW or HWC",
        turned=True,
        action=(ActionPart("arm", 6), ActionPart("hand", 1)),
        action_dim=7,
        state_units=(Unit(-1, 100.0, 0.5),),
    )


@pytest.mark.parametrize(
    ("changes", "key", "got"),
    [
        ({"camera": "{}"}, "", "unknown key"),
        ({"name": None}, "", "['name']"),
        ({"name": "5"}, "name", "5"),
        ({"prompt": None}, "", "['prompt']"),
        ({"prompt": "[]"}, "prompt", "at least one entry"),
        ({"prompt": '"task"'}, "prompt", "task"),
        ({"prompt": "[5]"}, "prompt[0]", "5"),
        ({"prompt": "[[]]"}, "prompt[0]", "[]"),
        ({"state": "[5]"}, "state[0]", "5"),
        ({"state": '[{ key = "a" }]'}, "state[0]", "'key'"),
        ({"state": "[{ length = 4 }]"}, "state[0]", "['keys']"),
        ({"state": '[{ keys = "a", length = 0 }]'}, "state[0].length", "0"),
        ({"state": '[{ keys = "a", length = true }]'}, "state[0].length", "True"),
        ({"cameras": "5"}, "cameras", "5"),
        ({"cameras": "{ top = 5 }"}, "cameras.top", "5"),
        ({"cameras": None, "any_camera": None}, "cameras", "none"),
        ({"any_camera": '["images", "top"]'}, "any_camera", "top"),
        ({"pictures": '"CHW"'}, "pictures", "CHW"),
        ({"turned": "1"}, "turned", "1"),
        ({"action": '[{ key = "arm" }]'}, "action[0]", "['length']"),
        ({"action": '[{ key = "", length = 1 }]'}, "action[0].key", "''"),
        ({"action_dim": "-1"}, "action_dim", "-1"),
        ({"action_units": "[{ dim = 1.5, scale = 1, offset = 0 }]"}, "action_units[0].dim", "1.5"),
        ({"action_units": "[{ dim = 1, scale = 0, offset = 0 }]"}, "action_units[0].scale", "0"),
        ({"action_units": '[{ dim = 1, scale = 1, offset = "0" }]'}, "action_units[0].offset", "'0'"),
    ],
)
def test_a_wrong_file_is_refused_by_key(tmp_path: Path, changes: dict[str, str | None], key: str, got: str) -> None:
    path = written(tmp_path, changes)
    with pytest.raises(ConfigError) as refused:
        robot_schemas.read_schema(path)
    assert refused.value.where == f"{path}: robot{'.' * bool(key)}{key}"
    assert got in str(refused.value) and refused.value.got is not None


WIDOWX = 'name = "widowx"\nprompt = ["instruction"]\n[cameras]\ntop = "image"\n'


def test_a_robot_without_a_state_is_declared_for_a_run_without_one(tmp_path: Path) -> None:
    path = tmp_path / "widowx.toml"
    path.write_text(WIDOWX)
    (schema,) = robot_schemas.schemas_for([str(path)], ("top",), 0, 7, {})
    seen = schema.observation({"image": PICTURE, "instruction": "fold the towel"})
    assert seen.state.shape == (0,) and seen.state.dtype == np.float32
    assert set(schema.message(seen)) == {"image", "instruction"}
    with pytest.raises(ConfigError, match="state does not fit") as refused:
        robot_schemas.schemas_for([str(path)], ("top",), 8, 7, {})
    assert refused.value.expected == "no state" and "8 numbers" in str(refused.value.got)


def test_a_state_part_of_open_length_may_be_empty() -> None:
    schema = fit_schema(robot_schemas.load_schema("light-wam"), ("top",), 0, 7)
    seen = schema.observation({"images": {"top": PICTURE}, "prompt": "go", "state": np.zeros(8)})
    assert seen.state.shape == (0,)
    with pytest.raises(ConfigError, match="state does not fit"):
        fit_schema(robot_schemas.load_schema("droid"), ("exterior_image_1_left", "wrist_image_left"), 0, 8)


def test_a_state_may_come_as_an_array_of_one_row(tmp_path: Path) -> None:
    path = tmp_path / "go1.toml"
    path.write_text(WIDOWX.replace("[cameras]", 'state = [{ keys = "state", row = true }]\nreply = "list"\n[cameras]'))
    (schema,) = robot_schemas.schemas_for([str(path)], ("top",), 3, 7, {})
    assert schema.reply == "list"
    sent = {"image": PICTURE, "instruction": "go", "state": np.arange(3.0).reshape(1, -1)}
    seen = schema.observation(sent)
    assert seen.state.tolist() == [0, 1, 2]
    assert schema.message(seen)["state"].shape == (1, 3)
    with pytest.raises(WireError, match="must be one vector"):
        schema.observation(sent | {"state": np.zeros((2, 3))})
    path.write_text(WIDOWX.replace("[cameras]", 'reply = "rows"\n[cameras]'))
    with pytest.raises(ConfigError) as refused:
        robot_schemas.read_schema(path)
    assert refused.value.where == f"{path}: robot.reply"


@pytest.mark.parametrize("content", [b"name = ", b"\xff", None])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "robot.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        robot_schemas.read_schema(path)


@pytest.mark.parametrize(
    ("picture", "hint"),
    [
        (np.zeros((4, 5, 3), np.float32), "255"),
        (np.zeros((4, 5, 3), np.uint16), ">> 8"),
        ([[0]], "np.asarray"),
        (np.zeros((4, 5), np.uint8), "grey"),
        (np.zeros((4, 5, 1), np.uint8), "grey"),
        (np.zeros((1, 4, 5, 3), np.uint8), "no batch"),
    ],
)
def test_the_hint_fits_the_picture(picture: Any, hint: str) -> None:
    schema, message = libero()
    with pytest.raises(WireError) as refused:
        schema.observation(message | {"observation/image": picture})
    assert hint in refused.value.next_step


def test_a_list_of_numpys_numbers_is_a_state() -> None:
    schema, message = libero()
    assert schema.observation(message | {"observation/state": list(np.arange(8.0))}).state.tolist() == list(range(8))


def test_a_null_instruction_is_refused() -> None:
    schema, message = libero()
    with pytest.raises(WireError, match="must be text") as refused:
        schema.observation(message | {"prompt": None})
    assert (refused.value.where, refused.value.got) == ("prompt", "null")
