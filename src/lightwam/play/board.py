"""The newest value of everything that a page shows, written by the session's thread and read by every viewer.

A viewer that is slow misses what was replaced meanwhile, and nobody waits for it.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class _Part(NamedTuple):
    version: int
    kind: str
    """json or jpeg"""
    body: bytes


class News(NamedTuple):
    """All parts that are newer than those a viewer has."""

    version: int
    message: bytes
    """4 bytes: the header's length, big-endian; the header, JSON: [name, kind, bytes] of each part; their bodies"""


class Board:
    """Named parts with a version each."""

    def __init__(self) -> None:
        self._lock, self._version, self._parts = threading.Lock(), 0, dict[str, _Part]()
        self.on_change: Callable[[], object] | None = None
        """called after every change, in the thread that made it"""

    def put(self, parts: dict[str, Any]) -> None:
        """Replace parts together: bytes are a JPEG picture, everything else is JSON."""
        encoded = {
            name: ("jpeg", value)
            if isinstance(value, bytes)
            else ("json", json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
            for name, value in parts.items()
        }
        with self._lock:
            self._version += 1
            self._parts |= {name: _Part(self._version, kind, body) for name, (kind, body) in encoded.items()}
        if self.on_change is not None:
            self.on_change()

    def drop(self, prefix: str) -> None:
        """Forget the parts whose names begin with `prefix`; viewers are told by another part."""
        with self._lock:
            self._parts = {name: part for name, part in self._parts.items() if not name.startswith(prefix)}

    def news(self, since: int) -> News | None:
        """Return what changed after the version `since` (0: everything), or None."""
        with self._lock:
            new = {name: part for name, part in self._parts.items() if part.version > since}
            version = self._version
        if not new:
            return None
        header = json.dumps([[name, part.kind, len(part.body)] for name, part in new.items()]).encode()
        bodies = b"".join(part.body for part in new.values())
        return News(version, struct.pack(">I", len(header)) + header + bodies)
