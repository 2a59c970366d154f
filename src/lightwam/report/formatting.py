"""Numbers and strings as people read them, escaped for HTML."""

from __future__ import annotations

import html
import math

THIN = "\u202f"
"""narrow no-break space, between a number and its unit"""

_SIMULATORS = {"metaworld": "Meta-World", "libero": "LIBERO", "robotwin": "RoboTwin"}


def escape(text: object) -> str:
    """`text` for use in HTML, also within quotes."""
    return html.escape(str(text), quote=True)


def percent(rate: float) -> str:
    """0.95 -> 95 %, 0.925 -> 92.5 %; what is neither nothing nor everything is never rounded to 0 or 100."""
    value = min(max(100 * rate, 0.1), 99.9) if 0 < rate < 1 else 100 * rate
    return f"{value:.1f}".removesuffix(".0") + f"{THIN}%"


def duration(seconds: float) -> str:
    """3725 -> 1 h 2 min; 83 -> 1 min 23 s; 4.2 -> 4.2 s."""
    if seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"


def figures(value: float) -> str:
    """At most three significant digits, no needless exponent: 0.0123, 45.2, 3,000, 460k, 1e-4."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def millions(count: int) -> str:
    """A parameter count: 6.21M, 441M, 1.51B."""
    if count >= 10**9:
        return f"{count / 1e9:.3g}B"
    return f"{count / 1e6:.3g}M" if count >= 10**6 else f"{count / 1e3:.3g}k"


def counted(count: int, noun: str) -> str:
    """1 task, 4 tasks."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def simulator(name: str) -> str:
    """A simulator as its authors spell it."""
    return _SIMULATORS.get(name, name)
