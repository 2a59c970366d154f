"""A trained policy: loaded from a run directory or the Hub, acting on observations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightwam.policy.policy import Policy as Policy


def __getattr__(name: str) -> Any:
    """Import `Policy` when it is first asked for: run directories are read without it."""
    if name != "Policy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightwam.policy.policy import Policy

    return Policy
