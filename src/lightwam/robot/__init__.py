"""The robot's side of serving: a client of openpi servers, and players of action chunks.

A robot's computer needs neither torch nor jaxtyping for these names, which are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightwam.robot.background import BackgroundRequester as BackgroundRequester
    from lightwam.robot.chunks import Crossfade as Crossfade
    from lightwam.robot.chunks import Ensemble as Ensemble
    from lightwam.robot.client import Client as Client
    from lightwam.robot.errors import CannotConnect as CannotConnect
    from lightwam.robot.errors import ConnectionLost as ConnectionLost
    from lightwam.robot.errors import Refused as Refused
    from lightwam.robot.player import BlockingPlayer as BlockingPlayer
    from lightwam.robot.player import ChunkPlayer as ChunkPlayer
    from lightwam.robot.player import Play as Play
    from lightwam.robot.player import hold_still as hold_still

_NAMES = {
    "background": ("BackgroundRequester",),
    "chunks": ("Crossfade", "Ensemble"),
    "client": ("Client",),
    "errors": ("CannotConnect", "ConnectionLost", "Refused"),
    "player": ("BlockingPlayer", "ChunkPlayer", "Play", "hold_still"),
}
_MODULES = {name: f"lightwam.robot.{module}" for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lightwam.robot' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
