"""The codec: pictures at their places, normalisation with an inverse, doors that name what is wrong."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lightwam.config.schema import CameraPlace, CodecConfig, NormKind
from lightwam.data.codec import Codec, affine, compose_canvas, to_pictures
from lightwam.data.statistics import measure, measure_offsets
from lightwam.errors import ConfigError, WireError
from lightwam.types import to_pixels

PLACES = (CameraPlace("front", 0, 0, 16, 16), CameraPlace("wrist", 4, 20, 8, 8))
CONFIG = CodecConfig(canvas=(16, 32), places=PLACES, delta_action_dims=(0,))
KINDS: tuple[NormKind, ...] = ("min_max", "z_score", "quantile", "identity")


def data(dims: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(2, 3, (500, dims)).astype(np.float32)


def codec(config: CodecConfig = CONFIG, state: np.ndarray | None = None) -> Codec:
    return Codec(config, measure(data() if state is None else state), measure(data(2)))


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def test_pictures_stand_at_their_places_and_the_rest_is_black() -> None:
    frames = {"front": picture(16, 16), "wrist": picture(8, 8), "unused": picture(3, 5)}
    canvas = codec().canvas(frames)
    assert canvas.shape == (16, 32, 3) and canvas.dtype == np.uint8
    np.testing.assert_array_equal(canvas[:16, :16], frames["front"])
    np.testing.assert_array_equal(canvas[4:12, 20:28], frames["wrist"])
    assert canvas[:4, 16:].sum() == canvas[12:, 16:].sum() == canvas[:, 28:].sum() == 0


def test_resizing_is_the_antialiased_bilinear_of_torch() -> None:
    front = picture(24, 48)
    canvas = codec().canvas({"front": front, "wrist": picture(8, 8)})
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(front).permute(2, 0, 1)[None].double(), (16, 16), mode="bilinear", antialias=True
    )[0].permute(1, 2, 0)
    assert np.abs(canvas[:16, :16] - expected.numpy()).max() <= 0.5 + 1e-4


def test_a_crop_is_a_share_of_the_picture() -> None:
    place = dataclasses.replace(PLACES[0], crop=(0.25, 0.5, 0.75, 1.0))
    front = picture(32, 32)
    canvas = codec(dataclasses.replace(CONFIG, places=(place,))).canvas({"front": front})
    np.testing.assert_array_equal(canvas[:16, :16], front[8:24, 16:])


def test_a_clip_is_placed_frame_by_frame_like_single_pictures() -> None:
    clip = {name: np.stack([picture(10 + i, 9) [:10] for i in range(3)]) for name in ("front", "wrist")}  # fmt: skip
    together = compose_canvas(CONFIG, clip)
    for i in range(3):
        np.testing.assert_array_equal(together[i], codec().canvas({name: frames[i] for name, frames in clip.items()}))


def test_clips_of_any_layout_are_placed_alike() -> None:
    """As tensors; as arrays that run backwards (pictures turned upright); as arrays that must not be written to."""
    clip = {name: np.stack([picture(10, 9), picture(11, 9)[:10]]) for name in ("front", "wrist")}
    expected = compose_canvas(CONFIG, clip)
    tensors = {name: torch.from_numpy(frames) for name, frames in clip.items()}
    np.testing.assert_array_equal(compose_canvas(CONFIG, tensors), expected)
    backwards = {name: frames[:, ::-1, ::-1].copy()[:, ::-1, ::-1] for name, frames in clip.items()}
    np.testing.assert_array_equal(compose_canvas(CONFIG, backwards), expected)
    for frames in clip.values():
        frames.flags.writeable = False
    np.testing.assert_array_equal(compose_canvas(CONFIG, clip), expected)


def test_pixels_and_pictures_are_inverse() -> None:
    canvas = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 16, 16, 3).repeat(2, 3)
    canvas.flags.writeable = False
    pixels = to_pixels(canvas)
    assert pixels.shape == (1, 3, 1, 16, 32) and pixels.is_contiguous()
    expected = (torch.tensor(np.array(canvas)).permute(0, 4, 1, 2, 3).double() / 255 - 0.5) / 0.5
    assert (pixels - expected).abs().max() < 2e-7 and pixels.min() == -1 and pixels.max() == 1
    np.testing.assert_array_equal(to_pictures(pixels), canvas)
    assert torch.equal(to_pixels(torch.tensor(np.array(canvas))), pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_normalisation_is_what_its_name_says(kind: NormKind) -> None:
    rows = data()
    scaled = codec(dataclasses.replace(CONFIG, state_norm=kind)).encode_state(rows)
    assert scaled.dtype == np.float32 and scaled.shape == rows.shape
    if kind == "min_max":
        np.testing.assert_allclose([scaled.min(0), scaled.max(0)], [[-1] * 3, [1] * 3], atol=1e-6)
    elif kind == "z_score":
        np.testing.assert_allclose([scaled.mean(0), scaled.std(0)], [[0] * 3, [1] * 3], atol=1e-5)
    elif kind == "quantile":
        quantiles = np.quantile(scaled.astype(np.float64), [0.01, 0.99], axis=0)
        np.testing.assert_allclose(quantiles, [[-1] * 3, [1] * 3], atol=5e-3)
        assert scaled.max() > 1  # nothing is clipped
    else:
        np.testing.assert_array_equal(scaled, rows)


@pytest.mark.parametrize("kind", ["min_max", "z_score", "quantile"])
def test_a_constant_dimension_becomes_zero_and_comes_back(kind: NormKind) -> None:
    rows = np.stack([np.full(500, 0.3, np.float32), data()[:, 0]], 1)
    box = Codec(dataclasses.replace(CONFIG, action_norm=kind), measure(data()), measure(rows))
    encoded = box.encode_action(rows)
    assert np.abs(encoded[:, 0]).max() == 0
    assert (box.decode_action(encoded)[:, 0] == np.float32(0.3)).all()
    np.testing.assert_allclose(box.encode_action(np.array([0.8, 0], np.float32))[0], 0.5, atol=1e-6)


def test_a_dimension_that_hardly_ever_moves_is_scaled_by_its_range_under_quantile() -> None:
    rows = np.zeros((500, 2), np.float32)
    rows[0] = 4
    scaled = codec(dataclasses.replace(CONFIG, state_norm="quantile"), rows).encode_state(rows)
    assert scaled[0].tolist() == [1, 1] and scaled[1].tolist() == [-1, -1]


def test_saved_and_read_back_it_is_the_same_codec() -> None:
    box = codec()
    again = Codec.from_dict(json.loads(json.dumps(box.to_dict())))
    assert again.to_dict() == box.to_dict() and again.config == box.config
    np.testing.assert_array_equal(again.encode_state(data()), box.encode_state(data()))


def relative_codec(kind: NormKind = "min_max") -> Codec:
    """Dimension 1 is relative."""
    config = dataclasses.replace(CONFIG, relative_action_dims=(1,), action_norm=kind)
    return Codec.fit(config, data(), data(2), np.array([0, 200, 500]), 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_relative_action_is_the_target_minus_the_state_at_the_chunks_start(kind: NormKind) -> None:
    box, chunk, state = relative_codec(kind), data(2)[:8].reshape(2, 4, 2), data()[[3, 9]]
    plain = Codec(dataclasses.replace(box.config, relative_action_dims=()), box.state, box.action)
    encoded = box.encode_action(chunk, state)
    np.testing.assert_array_equal(encoded[..., 0], plain.encode_action(chunk)[..., 0])
    assert len(box.relative) == 4
    offset, scale = np.array([affine(kind, stats) for stats in box.relative]).reshape(4, 2).T
    expected = (chunk[..., 1].astype(np.float64) - state[:, None, 1] - offset) / scale
    np.testing.assert_allclose(encoded[..., 1], expected, rtol=1e-6, atol=1e-7)
    moved = box.encode_action(chunk + np.float32([0, 64]), state + np.float32([0, 64, 0]))
    np.testing.assert_allclose(moved, encoded, atol=1e-5)  # the same motion elsewhere is the same number
    np.testing.assert_allclose(box.decode_action(encoded, state), chunk, atol=1e-5)
    np.testing.assert_array_equal(box.decode_action(encoded[0], state[0]), box.decode_action(encoded, state)[0])


def test_of_many_windows_some_are_measured_but_the_range_is_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    action, state, starts = data(2)[:499], data(2)[1:], np.array([0, 230, 499])
    exact = measure_offsets(action, state, starts, 4)
    monkeypatch.setattr("lightwam.data.statistics.MAX_OFFSETS", 150)
    stats = measure_offsets(action, state, starts, 4)
    assert [step.count for step in exact] == [499, 497, 495, 493]  # a step more is past the end of both episodes
    assert all(step.count < 150 for step in stats)
    for few, every in zip(stats, exact, strict=True):
        np.testing.assert_array_equal([few.min, few.max], [every.min, every.max])
        np.testing.assert_allclose(few.std, every.std, rtol=0.15)


def test_a_step_that_few_windows_reach_is_normalised_as_the_one_before() -> None:
    rows, starts = data(2)[:25], np.array([0, 20, 21, 22, 23, 24, 25])
    assert len(measure_offsets(rows, rows, starts, 30)) == 18, "2 of 25 windows reach the 19th step"
    config = dataclasses.replace(CONFIG, relative_action_dims=(0, 1))
    box, chunk = Codec.fit(config, rows, rows, starts, 30), np.zeros((30, 2), np.float32)
    late = box.encode_action(chunk, chunk[0])
    np.testing.assert_array_equal(late[18:], np.repeat(late[17:18], 12, axis=0))


def test_relative_actions_need_the_state_and_statistics() -> None:
    box = relative_codec()
    for call in (box.encode_action, box.decode_action):
        with pytest.raises(WireError, match="need the state"):
            call(data(2))
        with pytest.raises(WireError, match="width 3"):
            call(data(2), data(2)[0])
    with pytest.raises(ConfigError, match="statistics of its relative dims"):
        Codec(box.config, box.state, box.action)
    with pytest.raises(ConfigError, match="dims of state and action"):
        codec(dataclasses.replace(CONFIG, relative_action_dims=(2,)))
    with pytest.raises(ConfigError, match="there is no state"):
        codec(dataclasses.replace(CONFIG, relative_action_dims=(0,)), np.zeros((5, 0), np.float32))


def test_a_relative_codec_is_saved_and_read_back_and_older_files_are_read() -> None:
    box = relative_codec()
    again = Codec.from_dict(json.loads(json.dumps(box.to_dict())))
    assert again.config == box.config and again.relative == box.relative and again.to_dict() == box.to_dict()
    older = codec().to_dict()
    assert "relative" not in older
    del older["config"]["relative_action_dims"]
    assert Codec.from_dict(older).to_dict() == codec().to_dict()


@pytest.mark.parametrize(
    ("path", "words"), [(("config", "canvas_"), "canvas_"), (("state", "q55"), "q55"), (("extra",), "extra")]
)
def test_an_unknown_key_is_refused_by_name(path: tuple[str, ...], words: str) -> None:
    data = codec().to_dict()
    table = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = 1
    with pytest.raises(ConfigError, match=words):
        Codec.from_dict(data)


def test_a_delta_dimension_that_is_no_action_is_refused() -> None:
    with pytest.raises(ConfigError, match="delta_action_dims"):
        codec(dataclasses.replace(CONFIG, delta_action_dims=(2,)))


@pytest.mark.parametrize(
    ("wrist", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), "'wrist'.*\n.*float32\n.*uint8"),
        (np.zeros((8, 8), np.uint8), r"'wrist'.*\n.*\(8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"'wrist'.*\n.*\(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"'wrist'.*\n.*\(0, 8, 3\)"),
        ([[1, 2, 3]], "'wrist'.*\n.*list"),
    ],
)
def test_a_wrong_picture_is_refused_with_its_camera(wrist: object, words: str) -> None:
    with pytest.raises(WireError, match=words):
        codec().canvas({"front": picture(16, 16), "wrist": wrist})


def test_a_missing_camera_is_named_with_the_nearest() -> None:
    with pytest.raises(WireError, match=r"expected: wrist\n.*did you mean 'wrist_1'"):
        codec().canvas({"front": picture(16, 16), "wrist_1": picture(8, 8)})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (np.zeros(4, np.float32), r"width(.|\n)*\(4,\)"),
        (np.zeros(3, np.int64), "int64"),
        ([0.0, 0.0, 0.0], "list"),
        (np.array([0, np.nan, np.inf], np.float32), r"dims \[1, 2\]"),
        (np.float32(1), "float32"),
    ],
)
def test_a_wrong_state_is_refused(state: object, words: str) -> None:
    with pytest.raises(WireError, match=words):
        codec().encode_state(state)
