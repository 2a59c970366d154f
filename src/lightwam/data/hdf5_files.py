"""HDF5 files, which benchmarks publish their own demonstrations in; h5py comes with a benchmark's extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightwam.errors import DatasetError

UNREADABLE = (OSError, RuntimeError, KeyError, ValueError)
"""what h5py raises for damaged files"""


def open_hdf5(path: Path, extra: str) -> Any:
    """Open a file for reading; DatasetError, with the extra to install, without h5py."""
    try:
        import h5py
    except ImportError as error:
        step = f"pip install 'lightwam[{extra}]'"
        raise DatasetError("an HDF5 file needs h5py", where=path, got=error, next_step=step) from error
    return h5py.File(path, "r")
