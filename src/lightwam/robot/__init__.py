"""The robot's side: a client of openpi servers, players of action chunks, and the loop that drives a LeRobot robot.

A robot's computer needs neither torch nor jaxtyping to import these names.
"""

from lightwam.robot.background import BackgroundRequester
from lightwam.robot.chunks import Crossfade, Ensemble
from lightwam.robot.client import Client
from lightwam.robot.device import RobotDevice, Teleoperator
from lightwam.robot.drive_settings import DriveResult, DriveSettings
from lightwam.robot.driving import drive
from lightwam.robot.errors import CannotConnect, ConnectionLost, Refused, RobotError
from lightwam.robot.limits import RobotProfile
from lightwam.robot.player import BlockingPlayer, ChunkPlayer, Play, hold_still

__all__ = [
    "BackgroundRequester",
    "BlockingPlayer",
    "CannotConnect",
    "ChunkPlayer",
    "Client",
    "ConnectionLost",
    "Crossfade",
    "DriveResult",
    "DriveSettings",
    "Ensemble",
    "Play",
    "Refused",
    "RobotDevice",
    "RobotError",
    "RobotProfile",
    "Teleoperator",
    "drive",
    "hold_still",
]
