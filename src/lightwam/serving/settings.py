"""How a server listens and how much it takes on: every limit in one place."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from lightwam.errors import ConfigError
from lightwam.wire.limits import Limits


@dataclass(frozen=True)
class Serving:
    """Where the server listens, who may ask, and what it refuses."""

    host: str = "127.0.0.1"
    """127.0.0.1: this machine alone; 0.0.0.0: every network, which needs a key"""
    port: int = 8000
    """openpi's websocket, HTTP /act, /healthz and /metrics; 0: any free one"""
    xpolicylab_port: int | None = 19000
    """XPolicyLab's websocket; None: not served"""
    api_keys: Path | None = None
    """file of API keys, one a line; those of the environment variable LIGHTWAM_API_KEYS count as well"""
    allow_anyone: bool = False
    """listen to other machines without asking for a key"""
    tls_certificate: Path | None = None
    """PEM file; with it, clients use wss:// and https://"""
    tls_key: Path | None = None
    """PEM file of its private key, if not in the same one"""
    robot_schemas: tuple[str, ...] = ()
    """how robots name cameras and state: built-in names or TOML files; by default all built-in ones that fit the run"""
    renames: dict[str, str] = field(default_factory=dict)
    """a family's camera -> the run's, where they differ"""
    max_batch: int = 8
    """requests that one pass of the model answers"""
    window_ms: float = 2.0
    """how long the first of several clients waits for the others"""
    max_queue: int = 64
    """requests; one more is told that the server is busy"""
    max_clients: int = 128
    """open connections; one more is refused"""
    limits: Limits = field(default_factory=Limits)
    """largest messages, arrays and texts; the greeting of openpi's protocol has message_bytes"""
    handshake_seconds: float = 10.0
    """for a connection to say what it wants, and for an HTTP body to arrive"""
    heartbeat_seconds: float = 30.0
    """seconds of silence after which a client is pinged; after half as long again it is cut off"""
    drain_seconds: float = 30.0
    """on SIGTERM, for what is asked already to be answered"""
    follow_seconds: float = 0.0
    """look so often for a newer checkpoint and change over to it; 0: never"""
    log: Literal["json", "text"] = "text"
    """form of the lines on stderr"""

    def __post_init__(self) -> None:
        """ConfigError for values with which a server could not serve."""
        least: dict[str, float] = {
            "max_batch": 1,
            "max_queue": 1,
            "max_clients": 1,
            "window_ms": 0,
            "follow_seconds": 0,
        }
        least |= dict.fromkeys(("handshake_seconds", "heartbeat_seconds", "drain_seconds"), 0.05)
        wrong = [(name, getattr(self, name), f"at least {low}") for name, low in least.items()
                 if not getattr(self, name) >= low]  # fmt: skip
        wrong += [(name, port, "0 to 65535") for name in ("port", "xpolicylab_port")
                  if (port := getattr(self, name)) is not None and not 0 <= port <= 65535]  # fmt: skip
        wrong += [(f"limits.{limit.name}", value, "at least 1") for limit in fields(self.limits)
                  if (value := getattr(self.limits, limit.name)) < 1]  # fmt: skip
        for name, got, expected in wrong:
            raise ConfigError("a server cannot have this setting", where=f"--{name.replace('_', '-')}", got=got,
                              expected=expected, next_step="lightwam serve --help has the usual value")  # fmt: skip
