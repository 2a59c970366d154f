"""Pictures in tables: PNG exactly, JPEG nearly, in any order of rows, and what is broken by its place."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightwam.data.lerobot.images import ImageReader
from lightwam.errors import DatasetError

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 3), np.uint8).repeat(16, 1).repeat(16, 2)
EPISODES = [0, 0, 1, 0, 1, 1]
"""rows of two episodes, mixed"""


def encoded(picture: np.ndarray, codec: str) -> bytes:
    import av

    context = av.CodecContext.create(codec, "w")
    context.height, context.width, context.time_base = *picture.shape[:2], Fraction(1)
    context.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj444p"}[codec]
    context.options = {"q:v": "1", "qmin": "1"} if codec == "mjpeg" else {}
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=context.pix_fmt)
    return b"".join(map(bytes, [*context.encode(frame), *context.encode(None)]))


def write(path: Path, codec: str) -> Path:
    cells = [{"bytes": encoded(picture, codec), "path": None} for picture in PICTURES]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"front": pa.array(cells, kind), "episode_index": EPISODES}), path, row_group_size=4)
    return path


@pytest.mark.parametrize(("codec", "error"), [("png", 0), ("mjpeg", 3)])
def test_pictures_come_back(tmp_path: Path, codec: str, error: float) -> None:
    reader = ImageReader(write(tmp_path / "table.parquet", codec), "front", (32, 48))
    for episode in (1, 0, 1):
        expected = PICTURES[np.array(EPISODES) == episode]
        assert np.abs(next(reader.stream(episode, 3, 3)).astype(int) - expected).mean() <= error
    with pytest.raises(DatasetError, match=r"another length[\s\S]*episode 1[\s\S]*3[\s\S]*4"):
        next(reader.stream(1, 4, 4))
    reader.close()


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "table.parquet", "png")
    for column, words in (("back", "no such column"), ("episode_index", "int64")):
        with pytest.raises(DatasetError, match=rf"must hold pictures[\s\S]*{column}[\s\S]*{words}"):
            ImageReader(path, column, (32, 48))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"cannot be read[\s\S]*table.parquet"):
        ImageReader(path, "front", (32, 48))
