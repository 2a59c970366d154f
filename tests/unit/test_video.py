"""Videos: frames come back exactly where they belong, near enough to what was written, and broken files say so."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lightwam.data.lerobot.video import VideoReader, encode_video, join_videos
from lightwam.errors import DatasetError

FPS = 10


def clip(length: int, first: int = 0, height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth pictures; the grey level of the lower half tells the frame's number."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([40 + 3 * columns, 200 - 3 * rows, 60 + columns + rows], -1)
    frames = np.repeat(picture[None], length, 0)
    frames[:, height // 2 :] = 20 + 4 * (first + np.arange(length))[:, None, None, None]
    return frames.clip(0, 255).astype(np.uint8)


def frames_at(reader: VideoReader, times: np.ndarray) -> np.ndarray:
    return next(reader.stream(times, len(times)))


def numbers(frames: np.ndarray) -> list[int]:
    lower = frames[:, frames.shape[1] // 2 + 4 : -2].astype(float).mean((1, 2, 3))
    return np.round((lower - 20) / 4).astype(int).tolist()


def times(first: float, count: int) -> np.ndarray:
    """`count` pictures from number `first` on."""
    return (first + np.arange(count)) / FPS


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    for name, length, first in (("a", 13, 0), ("b", 7, 13), ("c", 21, 20)):
        encode_video(tmp_path / f"{name}.mp4", clip(length, first), FPS)
    join_videos([tmp_path / f"{name}.mp4" for name in "abc"], [13, 7, 21], FPS, tmp_path / "all.mp4")
    return tmp_path / "all.mp4"


def test_a_small_red_target_keeps_its_colour(tmp_path: Path) -> None:
    frames = clip(12, height=96, width=96)
    frames[:, 70:73, 50:53] = (255, 0, 0)
    encode_video(tmp_path / "a.mp4", frames, FPS)
    with closing(VideoReader(tmp_path / "a.mp4")) as reader:
        error = np.abs(frames_at(reader, times(0, 12)).astype(int) - frames)
    assert error.mean() < 1.5
    assert error[:, 70:73, 50:53].mean() < 8


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    encode_video(tmp_path / "a.mp4", clip(3, height=31, width=45), FPS)
    with closing(VideoReader(tmp_path / "a.mp4")) as reader:
        assert frames_at(reader, times(0, 3)).shape == (3, 31, 45, 3)


@pytest.mark.parametrize(("start", "count"), [(0, 13), (13, 7), (20, 21), (0, 41), (17, 9), (40, 1), (5, 1)])
def test_any_range_of_a_joined_file_is_exact(joined: Path, start: int, count: int) -> None:
    with closing(VideoReader(joined)) as reader:
        assert numbers(frames_at(reader, times(start, count))) == list(range(start, start + count))


def test_joining_does_not_touch_the_pictures(joined: Path) -> None:
    with closing(VideoReader(joined)) as whole, closing(VideoReader(joined.with_name("b.mp4"))) as part:
        np.testing.assert_array_equal(frames_at(whole, times(13, 7)), frames_at(part, times(0, 7)))


def test_ranges_in_any_order_from_one_reader(joined: Path) -> None:
    with closing(VideoReader(joined)) as reader:
        for start, count in ((20, 21), (0, 13), (13, 7), (13, 3), (16, 4), (2, 1)):
            assert numbers(frames_at(reader, times(start, count))) == list(range(start, start + count))


def test_a_video_that_is_too_short_says_how_much_is_there(joined: Path) -> None:
    with (
        closing(VideoReader(joined)) as reader,
        pytest.raises(DatasetError, match=r"shorter(.|\n)*4\.0000 s(.|\n)*4\.1000 s"),
    ):
        frames_at(reader, times(20, 22))


def test_another_frame_rate_is_noticed(joined: Path) -> None:
    with closing(VideoReader(joined)) as reader, pytest.raises(DatasetError, match=r"no frame(.|\n)*0\.0500 s"):
        frames_at(reader, times(0, 13) / 2)


def test_a_missing_and_a_truncated_video_are_named(joined: Path) -> None:
    with pytest.raises(DatasetError, match=r"missing(.|\n)*none\.mp4"):
        VideoReader(joined.with_name("none.mp4"))
    whole = joined.read_bytes()
    joined.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"cannot be decoded(.|\n)*all\.mp4"):
        VideoReader(joined)


def test_garbage_inside_a_video_is_noticed(joined: Path) -> None:
    whole = bytearray(joined.read_bytes())
    start = whole.find(b"mdat") + 4
    whole[start : start + 3000] = bytes(3000)
    joined.write_bytes(whole)
    with pytest.raises(DatasetError), closing(VideoReader(joined)) as reader:
        frames_at(reader, times(0, 41))


def test_clips_of_different_making_are_not_joined(tmp_path: Path) -> None:
    encode_video(tmp_path / "a.mp4", clip(3), FPS)
    encode_video(tmp_path / "b.mp4", clip(3, height=64), FPS)
    with pytest.raises(DatasetError, match="encoded differently"):
        join_videos([tmp_path / "a.mp4", tmp_path / "b.mp4"], [3, 3], FPS, tmp_path / "c.mp4")
    with pytest.raises(DatasetError, match="another length"):
        join_videos([tmp_path / "a.mp4"], [4], FPS, tmp_path / "c.mp4")
