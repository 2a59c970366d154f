"""Likely causes of a missing or unreadable file: renamed, a git-lfs pointer, a web page, cut short."""

from __future__ import annotations

import re
from pathlib import Path

from lightwam.errors import first_few

HEAD_BYTES = 1024
NUM_LISTED = 5
"""names next to a missing file that an error lists"""


def list_neighbours(path: Path, root: Path) -> str:
    """List what is in the nearest existing folder around the missing file `path` of the dataset `root`."""
    if path.is_symlink():
        return f"a broken link to {path.readlink()}"
    if path.is_dir():
        return "a folder of that name"
    folder = next(parent for parent in path.parents if parent.is_dir() or parent == root)
    names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    return f"{first_few(names, NUM_LISTED) or 'nothing'} in {folder}"


def likely_cause(path: Path) -> str:
    """Guess from its first and last bytes why a file cannot be read; "" without a guess."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(max(0, path.stat().st_size - 4))
            tail = file.read(4)
    except OSError:  # missing, a folder, no permission: the caller's own error says so
        return ""
    html = re.match(rb"\s*<(!doctype|html)", head, re.IGNORECASE)
    text = path.suffix in (".parquet", ".mp4") and len(head) < HEAD_BYTES and head.isascii()
    no_footer = "its writer was not closed (LeRobot: dataset.finalize()), or its copy was cut short"
    causes = (
        (not head, "the file is empty: its download or copy was cut short"),
        (head.startswith(b"version https://git-lfs"), "a git-lfs pointer, not the file: `git lfs pull` fetches it"),
        (html, "a web page, not the file: the download needs a log-in, or its URL is that of a page"),
        (not any(head), "it begins with zeros: its copy was cut short, or the disk failed"),
        (head.startswith(b"PAR1") and tail != b"PAR1", f"it has no footer: {no_footer}"),
        (text, f"the text {head.decode(errors='replace')[:80]!r}, not the file itself: download it again"),
    )
    return next((cause for holds, cause in causes if holds), "")
