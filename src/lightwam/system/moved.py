"""Documented module paths of earlier versions, kept for users' scripts: each is imported, with one line of warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "lightwam.checkpoint": "lightwam.policy.run_directory",
    "lightwam.codec": "lightwam.data.codec",
    "lightwam.collect": "lightwam.data.collect",
    "lightwam.compare": "lightwam.evaluation.compare",
    "lightwam.data.lerobot_writer": "lightwam.data.lerobot.writer",
    "lightwam.evaluate": "lightwam.evaluation.evaluate",
    "lightwam.hub": "lightwam.policy.hub",
    "lightwam.model_card": "lightwam.report.model_card",
    "lightwam.recipes": "lightwam.config.recipes",
    "lightwam.sim.base": "lightwam.sim.simulator",
    "lightwam.surprise": "lightwam.evaluation.watch.surprise",
    "lightwam.train": "lightwam.training.train",
}
"""earlier path -> path"""


class MovedModule(ModuleType):
    """A module of an earlier path, which looks every name up in the present one.

    Importing `lightwam.train` binds it in the package, where a function is expected.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(MOVED[self.__name__]), name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function of the module's own name."""
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **named)


class MovedModules(MetaPathFinder, Loader):
    """A finder and loader of earlier module paths."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for the paths of MOVED only."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module that can be called where its name is now a public function."""
        return MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Warn; the module needs no code of its own."""
        warnings.warn(f"{module.__name__} is now {MOVED[module.__name__]}", FutureWarning, stacklevel=2)


def install() -> None:
    """Register the earlier paths with Python's import system, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
