"""Numbers as people read them, and the Jinja2 templates that use these functions as filters."""

from __future__ import annotations

import functools
import json
import math
import re

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lightwam.system.tables import plural

THIN = "\u202f"
"""narrow no-break space, between a number and its unit"""

_SIMULATORS = {"metaworld": "Meta-World", "libero": "LIBERO", "robotwin": "RoboTwin", "so101": "SO-101"}


def render(template: str, **values: object) -> str:
    """Fill in a file of templates/; only those that end in .html escape their values. An unknown name is an error."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lightwam.report"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (percent, duration, short_number, parameter_count, plural, simulator_title, one_line)
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters["json"] = functools.partial(json.dumps, ensure_ascii=False)
    return environment


def percent(rate: float) -> str:
    """0.95 -> 95 %, 0.925 -> 92.5 %; only exactly 0 and 1 are shown as 0 and 100 %."""
    value = min(max(100 * rate, 0.1), 99.9) if 0 < rate < 1 else 100 * rate
    return f"{value:.1f}".removesuffix(".0") + f"{THIN}%"


def duration(seconds: float) -> str:
    """3725 -> 1 h 2 min; 83 -> 1 min 23 s; 4.2 -> 4.2 s."""
    if seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}{THIN}s"
    if rounded < 3600:
        return f"{rounded // 60}{THIN}min {rounded % 60}{THIN}s"
    return f"{rounded // 3600}{THIN}h {rounded % 3600 // 60}{THIN}min"


def short_number(value: float) -> str:
    """Round to three significant digits: 0.0123, 45.2, 3,000, 460k, 1e-4."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def parameter_count(count: int) -> str:
    """6.21M, 441M, 1.51B."""
    if count >= 10**9:
        return f"{count / 1e9:.3g}B"
    return f"{count / 1e6:.3g}M" if count >= 10**6 else f"{count / 1e3:.3g}k"


def simulator_title(name: str) -> str:
    """Spell a simulator's name as its authors do."""
    return _SIMULATORS.get(name, name)


def one_line(text: str) -> str:
    """Join a text's lines and escape what Markdown or HTML would interpret."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)
