"""Which proxy leads to a server, by the environment: never to this machine, nor to what NO_PROXY names."""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

ORDER = {"ws": ("ws", "socks", "https", "http"), "wss": ("wss", "socks", "https")}
"""an address's scheme -> the variables SCHEME_proxy that count for it, the first that is set first, as websockets has
them"""


@dataclass(frozen=True)
class Proxy:
    """A proxy, and where it was named."""

    address: str
    source: str
    """the environment variable, or the system's settings"""

    @property
    def shown(self) -> str:
        """The address without user and password."""
        scheme, mark, rest = self.address.rpartition("://")
        return f"{scheme}{mark}{rest.rpartition('@')[2]}"

    def __str__(self) -> str:
        """The address without user and password, and where it was named."""
        return f"{self.shown} (from {self.source})"


def proxy_for(url: str) -> Proxy | None:
    """The proxy of the environment, or of the system's settings, by which to reach a ws:// or wss:// address.

    None for this machine (localhost, 127.0.0.0/8, ::1, 0.0.0.0), for what NO_PROXY or no_proxy names, and where none is
    set.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    if _is_this_machine(host) or is_excepted(host, port, _variable("no_proxy")[1]):
        return None
    found = urllib.request.getproxies()
    for scheme in ORDER[parts.scheme]:
        if address := found.get(scheme):
            name, value = _variable(f"{scheme}_proxy")
            if scheme == "socks" and address.startswith("http://"):  # how macOS tells one
                address = "socks5h://" + address.removeprefix("http://")
            return Proxy(address, name if value else "the system's settings")
    return None


def is_excepted(host: str, port: int, exceptions: str) -> bool:
    """Whether a list as NO_PROXY holds it names a host.

    Entries are divided by commas: `*`, a host or a domain with all below it (with or without a leading dot), an
    address, a network (10.0.0.0/8), each with or without a port.
    """
    address = _address(host)
    for entry in (one.strip().lower() for one in exceptions.split(",")):
        name, separator, number = entry.rpartition(":")
        if separator and number.isdigit() and (":" not in name or name.endswith("]")):
            if int(number) != port:
                continue
            entry = name
        entry = entry.strip("[]").removeprefix("*").removeprefix(".") if entry != "*" else entry
        if entry == "*" or (entry and (host.lower() == entry or host.lower().endswith(f".{entry}"))):
            return True
        try:
            if address is not None and address in ipaddress.ip_interface(entry).network:
                return True
        except ValueError:
            continue  # a name
    return False


def _is_this_machine(host: str) -> bool:
    address = _address(host) or _ELSEWHERE
    is_here = address.is_loopback or address.is_unspecified  # openpi's client connects to 0.0.0.0 by default
    return host.lower() == "localhost" or host.lower().endswith(".localhost") or is_here


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


_ELSEWHERE = ipaddress.ip_address("192.0.2.1")


def _variable(name: str) -> tuple[str, str]:
    """A variable that is written small or large, as it is set, and its value; the small one counts first."""
    for written in (name, name.upper()):
        if value := os.environ.get(written, ""):
            return written, value
    return name, ""
