"""The settings of the page's server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightwam.errors import ConfigError


@dataclass(frozen=True)
class PlaySettings:
    """Where the page is served, and who may open it."""

    host: str = "127.0.0.1"
    """127.0.0.1: this machine alone; 0.0.0.0: every network, which needs a key"""
    port: int = 8010
    """0: any free port"""
    api_keys: Path | None = None
    """file of API keys, one a line, in addition to the environment variable LIGHTWAM_API_KEYS; the page asks for one"""
    allow_anyone: bool = False
    """listen to other machines without API keys"""
    tls_certificate: Path | None = None
    """PEM file; with it, the page is at https://"""
    tls_key: Path | None = None
    """PEM file of the private key, if it is not in the certificate's file"""
    max_viewers: int = 16
    """pages that may be open at a time"""
    view_height: int = 0
    """pixels of larger pictures, which a second simulator draws with the same actions: slower; 0: the policy's own"""
    imagine_steps: int = 20
    """Euler steps of an imagined future"""
    handshake_seconds: float = 10.0
    """time for a page to send its key"""
    heartbeat_seconds: float = 20.0
    """a page is pinged after this many seconds of silence, and cut off after half as many again"""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port must be 0 to 65535", got=self.port)
        for name in ("max_viewers", "imagine_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1", got=getattr(self, name))
        if self.view_height and not 16 <= self.view_height <= 1080:
            raise ConfigError("--view-height must be 0, or 16 to 1080", got=self.view_height)
        if min(self.handshake_seconds, self.heartbeat_seconds) < 0.05:
            got = f"{self.handshake_seconds:g}, {self.heartbeat_seconds:g}"
            raise ConfigError("--handshake-seconds and --heartbeat-seconds must be at least 0.05", got=got)
