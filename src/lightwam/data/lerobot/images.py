"""Pictures in a dataset's table, as PNG or JPEG bytes (LeRobot's dtype "image")."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8

from lightwam.data.lerobot.meta import other_size, unreadable_table
from lightwam.data.lerobot.rows import other_length
from lightwam.errors import DatasetError
from lightwam.system.images import PictureError, decode, is_encoded

MAX_BYTES = 1 << 28
"""of one decoded picture"""


class ImageReader:
    """A reader of the pictures in one column of a parquet file; one row group is in memory at a time.

    DatasetError when the file or a picture is missing, broken or of another size than (height, width) `size`.
    """

    def __init__(self, path: Path, key: str, size: tuple[int, int]) -> None:
        self.path, self._key, self._size = path, key, size
        try:
            self._raw = path.open("rb")  # pyarrow assumes that paths are UTF-8, whatever the locale
        except OSError as error:
            raise unreadable_table(path, error) from error
        try:
            self._file = pq.ParquetFile(self._raw)
            self._episode = self._file.read(columns=["episode_index"], use_threads=False)["episode_index"].to_numpy()
        except (pa.ArrowException, OSError, KeyError) as error:
            self._raw.close()
            raise unreadable_table(path, error) from error
        schema = self._file.schema_arrow
        kind = schema.field(key).type if key in schema.names else None
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            self._raw.close()
            where, got, step = f"{path} column {key}", kind or "no such column", "correct it, or its dtype in info.json"
            raise DatasetError("a column must hold pictures, in a struct's bytes", where=where, got=got, next_step=step)
        groups = (self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups))
        self._starts = np.cumsum([0, *groups])
        self._group, self._bytes = -1, pa.array([], pa.binary())

    def stream(self, episode: int, length: int, batch: int) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
        """Yield the pictures of one episode, which has `length` frames, at most `batch` of them at a time."""
        for begin in range(0, length, batch):
            yield self.pick(episode, length, np.arange(begin, min(begin + batch, length)))

    def pick(
        self, episode: int, length: int, numbers: Int64[np.ndarray, " n"]
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """Decode the pictures of some frames of one episode, which has `length` frames."""
        rows = np.flatnonzero(self._episode == episode)
        if len(rows) != length:
            raise other_length(f"{self.path} episode {episode}", len(rows), length)
        clip = np.empty((len(numbers), *self._size, 3), np.uint8)
        for i, number in enumerate(numbers.tolist()):
            where = f"{self.path} {self._key} episode {episode} frame {number}"
            clip[i] = self._decode(self._row(int(rows[number])), where)
        return clip

    def _row(self, row: int) -> bytes | None:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group:
            try:
                column = self._file.read_row_group(group, columns=[self._key], use_threads=False).column(self._key)
            except (pa.ArrowException, OSError) as error:
                raise unreadable_table(self.path, error) from error
            self._group, self._bytes = group, pc.struct_field(column.combine_chunks(), "bytes")
        data: bytes | None = self._bytes[row - int(self._starts[group])].as_py()
        return data

    def _decode(self, data: bytes | None, where: str) -> UInt8[np.ndarray, "height width 3"]:
        if data is None or not is_encoded(data):
            got = "no bytes" if data is None else f"bytes that begin with {data[:8]!r}"
            raise DatasetError("a picture must be a PNG or JPEG", where=where, got=got, next_step="store it as one")
        try:
            picture = decode(data, MAX_BYTES)
        except PictureError as error:
            raise DatasetError("a picture cannot be decoded", where=where, got=error, next_step="copy again") from error
        if picture.shape[:2] != self._size:
            raise other_size("a picture", where, picture.shape[:2], self._size)
        return picture

    def close(self) -> None:
        """Close the file, and free its pictures."""
        self._file.close()
        self._raw.close()
        self._bytes = pa.array([], pa.binary())
