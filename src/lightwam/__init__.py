"""lightwam: lightweight World-Action Models.

`import lightwam as lw` is the Python API (docs/python.md). A name is imported when it is first used, so that
`lightwam --help` does not wait for torch. The robot's side, which needs no torch, is `lightwam.robot`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightwam.system import moved

if TYPE_CHECKING:  # for type checkers and editors; tests hold that _MODULES lists the same names
    from lightwam.config.recipe_files import recipe as recipe
    from lightwam.config.recipe_files import recipe_names as recipe_names
    from lightwam.config.schema import Recipe as Recipe
    from lightwam.data.collect import collect as collect
    from lightwam.data.lerobot.hub import find_dataset as find_dataset
    from lightwam.data.lerobot.reader import LeRobotDataset as LeRobotDataset
    from lightwam.data.lerobot.writer import LeRobotWriter as LeRobotWriter
    from lightwam.errors import CheckpointError as CheckpointError
    from lightwam.errors import ConfigError as ConfigError
    from lightwam.errors import DatasetError as DatasetError
    from lightwam.errors import LightwamError as LightwamError
    from lightwam.errors import PromptError as PromptError
    from lightwam.errors import SetupError as SetupError
    from lightwam.errors import SimulatorError as SimulatorError
    from lightwam.errors import WireError as WireError
    from lightwam.evaluation.compare import compare as compare
    from lightwam.evaluation.evaluate import evaluate as evaluate
    from lightwam.evaluation.open_loop import evaluate_open_loop as evaluate_open_loop
    from lightwam.evaluation.watch.surprise import SurpriseWatch as SurpriseWatch
    from lightwam.model.light_wam import LightWAM as LightWAM
    from lightwam.policy.episode import Episode as Episode
    from lightwam.policy.policy import Policy as Policy
    from lightwam.report import write_report as write_report
    from lightwam.report.publish import push as push
    from lightwam.sim.check import check_simulator as check_simulator
    from lightwam.sim.gymnasium import from_gymnasium as from_gymnasium
    from lightwam.sim.registry import make_simulator as make_simulator
    from lightwam.sim.simulator import Simulator as Simulator
    from lightwam.sim.simulator import StepOutcome as StepOutcome
    from lightwam.training.train import train as train
    from lightwam.types import Observation as Observation

__version__ = "0.1.0"

_MODULES = {
    "CheckpointError": "lightwam.errors",
    "ConfigError": "lightwam.errors",
    "DatasetError": "lightwam.errors",
    "Episode": "lightwam.policy.episode",
    "LeRobotDataset": "lightwam.data.lerobot.reader",
    "LeRobotWriter": "lightwam.data.lerobot.writer",
    "LightWAM": "lightwam.model.light_wam",
    "LightwamError": "lightwam.errors",
    "Observation": "lightwam.types",
    "Policy": "lightwam.policy.policy",
    "PromptError": "lightwam.errors",
    "Recipe": "lightwam.config.schema",
    "SetupError": "lightwam.errors",
    "Simulator": "lightwam.sim.simulator",
    "SimulatorError": "lightwam.errors",
    "StepOutcome": "lightwam.sim.simulator",
    "SurpriseWatch": "lightwam.evaluation.watch.surprise",
    "WireError": "lightwam.errors",
    "check_simulator": "lightwam.sim.check",
    "collect": "lightwam.data.collect",
    "compare": "lightwam.evaluation.compare",
    "evaluate": "lightwam.evaluation.evaluate",
    "evaluate_open_loop": "lightwam.evaluation.open_loop",
    "find_dataset": "lightwam.data.lerobot.hub",
    "from_gymnasium": "lightwam.sim.gymnasium",
    "make_simulator": "lightwam.sim.registry",
    "push": "lightwam.report.publish",
    "recipe": "lightwam.config.recipe_files",
    "recipe_names": "lightwam.config.recipe_files",
    "train": "lightwam.training.train",
    "write_report": "lightwam.report",
}
"""public name -> the module that defines it"""
__all__ = ["__version__", *_MODULES]

moved.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lightwam' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
