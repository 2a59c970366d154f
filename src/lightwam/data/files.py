"""Files that are whole or absent, and their fingerprints."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lightwam.data.damage import likely_cause
from lightwam.errors import DatasetError

WHOLE_BYTES = 16 * 2**20
"""files up to this size are hashed whole"""
SAMPLE_BYTES = 2**16
NUM_SAMPLES = 64


def write_atomically(path: Path, *data: bytes, draft: str = "draft") -> None:
    """Write a file so that `path` holds either what was there before or all of `data`, whenever we are killed.

    It is written beside its place as NAME.`draft`, which must not be another writer's. OSError leaves no draft behind.
    """
    beside = path.with_name(f"{path.name}.{draft}")
    try:
        with beside.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a dataset; DatasetError when it is missing or broken."""
    if not path.is_file():
        raise DatasetError("a file of the dataset is missing", where=path,
                           next_step="copy it again")  # fmt: skip
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError("a file of the dataset is not JSON", where=path, got=likely_cause(path) or error,
                           expected="a JSON object in UTF-8", next_step="copy it again") from error  # fmt: skip
    if not isinstance(data, dict):
        raise DatasetError("a file of the dataset is not a JSON object", where=path, got=type(data).__name__,
                           next_step="copy it again")  # fmt: skip
    return data


def file_fingerprint(path: Path) -> str:
    """Size and hash. Of a file above 16 MiB 64 evenly spaced blocks of 64 KiB are hashed (with first and last)."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(NUM_SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return f"{size} bytes, {digest.hexdigest()}"
