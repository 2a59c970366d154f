"""The versions of a simulator's packages that its adapter was tested with, compared with what is installed.

Another version may run and give other numbers: MuJoCo 3.3.3 draws LIBERO a quarter darker than 3.3.2 does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lightwam.errors import SetupError
from lightwam.versions import versions


@dataclass(frozen=True)
class Package:
    """What an adapter states of one package."""

    versions: tuple[str, ...]
    """those that it was tested with, the one to install first; empty where the package has only been read"""
    otherwise: str = "results may differ from those of the tested versions"
    """what is known of other versions"""
    breaks_from: str | None = None
    """the first version that is known not to work, and all later ones"""


def compared(simulator: str, tested: Mapping[str, Package]) -> tuple[str, ...]:
    """A line for each installed package in another version than those tested; packages by the name to install.

    SetupError for a version that is known not to work.
    """
    installed = versions(tested)
    lines = []
    for package, stated in tested.items():
        version = installed.get(package)
        if version is None or version in stated.versions:
            continue
        if not stated.versions:
            lines.append(f"{simulator} was not tested with {package}, {version} is installed: {stated.otherwise}")
            continue
        best = f"{package}=={stated.versions[0]}"
        if stated.breaks_from is not None and _numbers(version) >= _numbers(stated.breaks_from):
            raise SetupError(
                f"the simulator {simulator!r} does not run with {package} {version}",
                expected=f"{best}; {stated.breaks_from} and later are known to break it",
                next_step=f"pip install '{best}'",
            )
        lines.append(
            f"{simulator} was tested with {package} {' and '.join(stated.versions)}, {version} is installed: "
            f"{stated.otherwise} (pip install '{best}')"
        )
    return tuple(lines)


def _numbers(version: str) -> tuple[int, ...]:
    """3.10.0rc1 -> (3, 10, 0): enough to say which of two releases came first."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
