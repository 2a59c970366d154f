"""The robot's side of serving: a client of openpi servers, and players of action chunks.

A robot's computer needs neither torch nor jaxtyping to import these names.
"""

from lightwam.robot.background import BackgroundRequester
from lightwam.robot.chunks import Crossfade, Ensemble
from lightwam.robot.client import Client
from lightwam.robot.errors import CannotConnect, ConnectionLost, Refused
from lightwam.robot.player import BlockingPlayer, ChunkPlayer, Play, hold_still

__all__ = [
    "BackgroundRequester",
    "BlockingPlayer",
    "CannotConnect",
    "ChunkPlayer",
    "Client",
    "ConnectionLost",
    "Crossfade",
    "Ensemble",
    "Play",
    "Refused",
    "hold_still",
]
