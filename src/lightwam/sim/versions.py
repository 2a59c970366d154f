"""Tested versions of a simulator's packages, compared with the installed ones.

Another version may run and give other results: MuJoCo 3.3.3 renders LIBERO a quarter darker than 3.3.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lightwam.errors import SetupError
from lightwam.system.machine import versions


@dataclass(frozen=True)
class PackageVersions:
    """The versions of one package that an adapter was tested with."""

    versions: tuple[str, ...]
    """tested versions, the recommended one first; () if none was tested"""
    note: str = "results may differ from those of the tested versions"
    """what is known about other versions"""
    breaks_from: str | None = None
    """the first version known not to work; later ones are refused too"""


def compare_versions(simulator: str, tested: Mapping[str, PackageVersions]) -> tuple[str, ...]:
    """Return a warning for each installed package (PyPI name) whose version was not tested.

    SetupError for a version that is known not to work.
    """
    installed = versions(tested)
    warnings = []
    for package, stated in tested.items():
        version = installed.get(package)
        if version is None or version in stated.versions:
            continue
        if not stated.versions:
            warnings.append(f"{simulator} was not tested with {package}, {version} is installed: {stated.note}")
            continue
        step = f"pip install '{package}=={stated.versions[0]}'"
        if stated.breaks_from is not None and _numbers(version) >= _numbers(stated.breaks_from):
            what = f"the simulator {simulator!r} does not run with {package} {version}"
            raise SetupError(what, expected=f"a version before {stated.breaks_from}", next_step=step)
        best = f"{package} {' and '.join(stated.versions)}"
        warnings.append(f"{simulator} was tested with {best}, {version} is installed: {stated.note} ({step})")
    return tuple(warnings)


def _numbers(version: str) -> tuple[int, ...]:
    """Parse 3.10.0rc1 to (3, 10, 0): enough to order two releases."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
