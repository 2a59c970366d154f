"""The proxy for a server's address, from the environment; none for this machine or for hosts in NO_PROXY."""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

ORDER = {"ws": ("ws", "socks", "https", "http"), "wss": ("wss", "socks", "https")}
"""scheme of an address -> the variables SCHEME_proxy to read, in this order, as websockets does"""


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the setting it comes from."""

    address: str
    source: str
    """the environment variable, or the system's settings"""

    @property
    def shown(self) -> str:
        """The address without user and password."""
        scheme, mark, rest = self.address.rpartition("://")
        return f"{scheme}{mark}{rest.rpartition('@')[2]}"

    def __str__(self) -> str:
        return f"{self.shown} (from {self.source})"


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy for a ws:// or wss:// address, from the environment or the system's settings.

    None without a proxy, for this machine (localhost, 127.0.0.0/8, ::1, 0.0.0.0), and for hosts in NO_PROXY, no_proxy.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "wss" else 80)
    if _is_this_machine(host) or is_excepted(host, port, _variable("no_proxy")[1]):
        return None
    proxies = urllib.request.getproxies()
    for scheme in ORDER[parts.scheme]:
        if address := proxies.get(scheme):
            name, value = _variable(f"{scheme}_proxy")
            if scheme == "socks" and address.startswith("http://"):  # macOS's form of it
                address = "socks5h://" + address.removeprefix("http://")
            return Proxy(address, name if value else "the system's settings")
    return None


def without_proxy(url: str) -> str:
    """Return the setting with which no proxy is used for an address."""
    return f"NO_PROXY={urlsplit(url).hostname} to connect without it"


def is_excepted(host: str, port: int, exceptions: str) -> bool:
    """Return whether `exceptions`, the value of NO_PROXY, includes a host.

    Its entries, separated by commas: `*`, a host or domain and its subdomains (with or without a leading dot), an IP
    address, a network (10.0.0.0/8); each with or without a port.
    """
    address, name_below = _address(host), f".{host.lower()}"
    for entry in (one.strip().lower() for one in exceptions.split(",")):
        name, separator, number = entry.rpartition(":")
        if separator and number.isdigit() and (":" not in name or name.endswith("]")):
            if int(number) != port:
                continue
            entry = name
        entry = entry.strip("[]").removeprefix("*").removeprefix(".") if entry != "*" else entry
        if entry == "*" or (entry and name_below.endswith(f".{entry}")):
            return True
        try:
            if address is not None and address in ipaddress.ip_interface(entry).network:
                return True
        except ValueError:
            continue  # a host name
    return False


def _is_this_machine(host: str) -> bool:
    if address := _address(host):
        return address.is_loopback or address.is_unspecified  # openpi's client connects to 0.0.0.0 by default
    return f".{host.lower()}".endswith(".localhost")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def _variable(name: str) -> tuple[str, str]:
    """Return the name and value of an environment variable in lower case or, if not set, in upper case."""
    name = name if os.environ.get(name) else name.upper()
    return name, os.environ.get(name, "")
