"""Pictures that stand in a dataset's table, as PNG or JPEG bytes a row (LeRobot's dtype "image")."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import UInt8

from lightwam.errors import DatasetError
from lightwam.system.file_damage import likely_cause
from lightwam.system.images import PictureError, decode, is_encoded

MOST_BYTES = 1 << 28
"""most bytes of one decoded picture"""


class ImageReader:
    """The pictures of one column of one parquet file; one row group of it is in memory at a time.

    Raises DatasetError when the file or a picture is missing, broken or of another size than (height, width) `size`.
    """

    def __init__(self, path: Path, key: str, size: tuple[int, int]) -> None:
        self.path, self._key, self._size = path, key, size
        try:
            self._raw = path.open("rb")  # pyarrow takes a path's name for UTF-8, which the locale may not say
        except OSError as error:
            raise self._broken(error) from error
        try:
            self._file = pq.ParquetFile(self._raw)
            self._episode = self._file.read(columns=["episode_index"], use_threads=False)["episode_index"].to_numpy()
        except (pa.ArrowException, OSError, KeyError) as error:
            self._raw.close()
            raise self._broken(error) from error
        schema = self._file.schema_arrow
        kind = schema.field(key).type if key in schema.names else None
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            self._raw.close()
            raise DatasetError("a column holds no pictures", where=f"{path} column {key}", got=kind or "no such column",
                               expected="a struct of bytes and path",
                               next_step="correct the dtype in meta/info.json, or the column")  # fmt: skip
        groups = (self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups))
        self._starts = np.cumsum([0, *groups])
        self._group, self._bytes = -1, pa.array([], pa.binary())

    def read(self, episode: int, length: int) -> UInt8[np.ndarray, "T height width 3"]:
        """All pictures of one episode, which has `length` frames."""
        return next(self.stream(episode, length, length))

    def stream(self, episode: int, length: int, batch: int) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
        """Yield the same pictures, at most `batch` of them at a time."""
        rows = np.flatnonzero(self._episode == episode)
        if len(rows) != length:
            raise DatasetError("an episode has another length than the episodes table says",
                               where=f"{self.path} episode {episode}", got=len(rows), expected=length,
                               next_step="set length in meta/episodes, or copy the file again")  # fmt: skip
        for begin in range(0, length, batch):
            some = rows[begin : begin + batch]
            clip = np.empty((len(some), *self._size, 3), np.uint8)
            for i, row in enumerate(some):
                where = f"{self.path} {self._key} episode {episode} frame {begin + i}"
                clip[i] = self._decode(self._row(int(row)), where)
            yield clip

    def _row(self, row: int) -> bytes | None:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group:
            try:
                column = self._file.read_row_group(group, columns=[self._key], use_threads=False).column(self._key)
            except (pa.ArrowException, OSError) as error:
                raise self._broken(error) from error
            self._group, self._bytes = group, pc.struct_field(column.combine_chunks(), "bytes")
        data: bytes | None = self._bytes[row - int(self._starts[group])].as_py()
        return data

    def _decode(self, data: bytes | None, where: str) -> UInt8[np.ndarray, "height width 3"]:
        if data is None or not is_encoded(data):
            raise DatasetError("a picture is missing or of an unknown format", where=where,
                               got="no bytes" if data is None else f"bytes that begin with {data[:8]!r}",
                               expected="a whole PNG or JPEG, in the table itself",
                               next_step="store it in the table as PNG or JPEG")  # fmt: skip
        try:
            picture = decode(data, MOST_BYTES)
        except PictureError as error:
            raise DatasetError("a picture cannot be decoded", where=where, got=error, expected="a whole PNG or JPEG",
                               next_step="copy the dataset again") from error  # fmt: skip
        if picture.shape[:2] != self._size:
            raise DatasetError("a picture has another size than info.json says", where=where,
                               got=picture.shape[:2], expected=self._size,
                               next_step="write the true size into the shape in meta/info.json")  # fmt: skip
        return picture

    def _broken(self, error: Exception) -> DatasetError:
        return DatasetError("a table cannot be read", where=self.path, got=likely_cause(self.path) or error,
                            expected="a whole parquet file", next_step="copy it again")  # fmt: skip

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        self._raw.close()
        self._bytes = pa.array([], pa.binary())
