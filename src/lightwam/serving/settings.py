"""The settings of a server."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from lightwam.errors import ConfigError
from lightwam.wire.limits import Limits

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("port", "xpolicylab_port"), (0, 65535)),
    **dict.fromkeys(("window_ms", "follow_seconds"), (0, math.inf)),
    **dict.fromkeys(("handshake_seconds", "heartbeat_seconds", "drain_seconds"), (0.05, math.inf)),
    **dict.fromkeys(("max_batch", "max_queue", "max_clients"), (1, math.inf)),
    **{f"limits.{limit.name}": (1, math.inf) for limit in fields(Limits)},
}
"""setting -> its least and largest value"""


@dataclass(frozen=True)
class Serving:
    """Where a server listens, who may connect, and what it refuses."""

    host: str = "127.0.0.1"
    """127.0.0.1: this machine alone; 0.0.0.0: every network, which needs a key"""
    port: int = 8000
    """port of openpi's websocket, vla-eval's at /vla-eval, HTTP /act, /healthz and /metrics; 0: any free port"""
    xpolicylab_port: int | None = 19000
    """port of XPolicyLab's websocket; None: not served"""
    api_keys: Path | None = None
    """file of API keys, one a line, in addition to the environment variable LIGHTWAM_API_KEYS"""
    allow_anyone: bool = False
    """listen to other machines without API keys"""
    tls_certificate: Path | None = None
    """PEM file; with it, clients use wss:// and https://"""
    tls_key: Path | None = None
    """PEM file of the private key, if it is not in the certificate's file"""
    robot_schemas: tuple[str, ...] = ()
    """how robots name cameras and state: built-in names or TOML files; default: all built-in ones that fit the run"""
    renames: dict[str, str] = field(default_factory=dict)
    """pairs of a robot schema's camera and the run's camera, where the names differ"""
    max_batch: int = 8
    """most requests that one pass of the model answers"""
    window_ms: float = 2.0
    """how long a request waits for those of other clients, to be answered in one pass"""
    max_queue: int = 64
    """most requests that wait; another one is refused as busy"""
    max_clients: int = 128
    """most open connections; another one is refused"""
    limits: Limits = field(default_factory=Limits)
    """largest messages, arrays and texts; openpi's greeting has message_bytes"""
    handshake_seconds: float = 10.0
    """time for a connection's first request, and for an HTTP body to arrive"""
    heartbeat_seconds: float = 30.0
    """a client is pinged after this many seconds of silence, and cut off after half as many again"""
    drain_seconds: float = 30.0
    """on SIGTERM, time to answer the requests that are waiting"""
    follow_seconds: float = 0.0
    """time between two checks for a newer checkpoint, which is then used; 0: never"""
    log: Literal["json", "text"] = "text"
    """format of the log on stderr"""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = operator.attrgetter(name)(self)
            if value is not None and not low <= value <= high:
                expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
                raise ConfigError(f"--{name.replace('_', '-')} must be {expected}", got=value)
