"""The small `Simulator` protocol, and how an adapter is found by its name.

An adapter is a module with four names: `TASKS` and `CAMERAS` (tuples of str), `make(config, task) -> Simulator`, and,
where demonstrations are wanted, `make_expert(config, simulator) -> Expert` (its own module for the adapters in here).
An optional fifth, `TESTED` (package -> `sim.tested.Package`), has the package versions it was tested with.
One of your own needs no registration: put its import path ("my_robot.sim") where "metaworld" would stand.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from lightwam.config.schema import SimConfig
from lightwam.errors import SetupError, SimulatorError, did_you_mean
from lightwam.sim.tested import compared
from lightwam.system.machine import versions
from lightwam.types import Observation


@dataclass(frozen=True)
class StepOutcome:
    """What one control step led to."""

    success: bool
    """the task was solved at some moment of this step"""
    ended: bool = False
    """the simulator cannot go on; `reset` is the only next call"""


@dataclass(frozen=True)
class Trial:
    """One seed of one task: a worker's job, named in its errors."""

    task: str
    seed: int

    def __str__(self) -> str:
        return f"task {self.task!r}, seed {self.seed}"


@runtime_checkable
class Simulator(Protocol):
    """One task of one simulator. Units are the robot's own; pictures are drawn by `observe` and by nothing else.

    `reset(seed)` decides everything: the same seed and the same actions give the same pictures and states, bit for
    bit, in a new simulator and in a used one, whether or not anybody looked in between.
    """

    task: str
    instruction: str
    """the task as a sentence"""
    robot: str
    """LeRobot's robot_type"""
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: float
    """control steps in a second of simulated time"""

    @property
    def constants(self) -> dict[str, Any]:
        """What a success rate depends on beside `SimConfig`, as plain JSON values; a result names them."""
        return {}

    @property
    def state_dim(self) -> int:
        """P."""
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_names)

    def reset(self, seed: int) -> None:
        """Begins the episode that `seed` names."""
        ...

    def observe(self) -> Observation:
        """What is seen now; draws the pictures. Refused (SimulatorError) before the first `reset`."""
        ...

    def step(self, action: Float32[np.ndarray, " A"]) -> StepOutcome:
        """One control step with an action in robot units; anything but A finite numbers raises SimulatorError."""
        ...

    def close(self) -> None:
        """Frees what the simulator holds and ends the episode; a second call does nothing."""
        ...


@runtime_checkable
class Expert(Protocol):
    """A scripted controller of one episode: made after `reset`, asked once a step."""

    def action(self) -> Float32[np.ndarray, " A"]:
        """What the expert does in the simulator's present state."""
        ...


@dataclass(frozen=True)
class _Adapter:
    simulator: str
    expert: str
    packages: tuple[str, ...] = ()
    extra: str = ""


_ADAPTERS = {
    "point": _Adapter("lightwam.sim.point", "lightwam.sim.point"),
    "libero": _Adapter("lightwam.sim.libero.simulator", "lightwam.sim.libero.expert", ("libero", "mujoco"), "libero"),
    "metaworld": _Adapter(
        "lightwam.sim.metaworld.simulator", "lightwam.sim.metaworld.expert", ("metaworld", "mujoco"), "metaworld"
    ),
}


def make(config: SimConfig, task: str) -> Simulator:
    """The simulator that `config.name` names, with `task` in it, not yet reset.

    Raises SimulatorError for an unknown name, task or camera, SetupError for a simulator that is not installed or has a
    version that is known not to work.
    """
    module = _module(config.name, expert=False)
    version_warnings(config.name)
    require_known(task, module.TASKS, f"{config.name} task")
    for camera in config.cameras:
        require_known(camera, module.CAMERAS, f"{config.name} camera")
    if not config.cameras or min(config.height, config.width, config.action_repeat) < 1:
        raise SimulatorError(
            "a simulator needs a camera, a picture size and an action_repeat of at least 1",
            where=f"sim ({config.name})",
            got=f"{config.cameras} {config.height}x{config.width}, action_repeat {config.action_repeat}",
        )
    return module.make(config, task)


def make_expert(config: SimConfig, simulator: Simulator) -> Expert:
    """The scripted expert for a simulator made by `make(config, ...)`; one expert an episode."""
    return _module(config.name, expert=True).make_expert(config, simulator)


def version_warnings(name: str) -> tuple[str, ...]:
    """Return a warning for each package whose version the adapter `name` was not tested with.

    SetupError for a version that is known not to work.
    """
    return compared(name, vars(_module(name, expert=False)).get("TESTED", {}))


def installed(name: str) -> dict[str, str]:
    """Return the installed versions of the packages in the adapter's TESTED."""
    stated = vars(_module(name, expert=False)).get("TESTED", {})
    return {package: version for package, version in versions(stated).items() if package in stated}


def tasks(name: str) -> tuple[str, ...]:
    """Every task of the adapter `name`."""
    return tuple(_module(name, expert=False).TASKS)


def cameras(name: str) -> tuple[str, ...]:
    """Every camera of the adapter `name`."""
    return tuple(_module(name, expert=False).CAMERAS)


def require_known(word: str, known: Iterable[str], kind: str) -> None:
    """Raises SimulatorError, with the nearest known words, unless `word` is one of `known`."""
    known = tuple(known)
    if word not in known:
        raise SimulatorError(f"unknown {kind}", got=repr(word), next_step=did_you_mean(word, known))


def finite_action(action: np.ndarray, dim: int, where: str) -> Float32[np.ndarray, " A"]:
    """`action` as float32 [dim]; SimulatorError when its shape is another or it holds a NaN or an infinity."""
    array = np.asarray(action, np.float32)
    if array.shape != (dim,):
        raise SimulatorError("an action of the wrong shape", where=where, got=array.shape, expected=(dim,))
    if not np.isfinite(array).all():
        raise SimulatorError("an action that is not finite", where=where, got=array.tolist(), expected="finite numbers")
    return array


def require_seed(seed: int, where: str) -> None:
    """Raise SimulatorError for a negative seed, which no random number generator accepts."""
    if seed < 0:
        raise SimulatorError("a seed must not be negative", where=where, got=seed, expected=">= 0")


def not_reset(where: str) -> SimulatorError:
    """The error of a simulator that is used before `reset`, or after `close`."""
    return SimulatorError("the simulator is not in an episode", where=where, next_step="call reset(seed) first")


def _module(name: str, *, expert: bool) -> ModuleType:
    adapter = _ADAPTERS.get(name)
    if adapter is None:
        if "." not in name:
            raise SimulatorError(
                "unknown simulator",
                got=repr(name),
                next_step=did_you_mean(name, _ADAPTERS) + "; or the import path of an adapter of yours, with a dot",
            )
        adapter = _Adapter(name, name, (name.partition(".")[0],))
    for package in adapter.packages:
        if importlib.util.find_spec(package) is None:
            install = f"pip install 'lightwam[{adapter.extra}]'" if adapter.extra else "install it, or fix sim.name"
            raise SetupError(
                f"the simulator {name!r} needs a package that is not installed", got=package, next_step=install
            )
    module = importlib.import_module(adapter.expert if expert else adapter.simulator)
    wanted = ("make_expert",) if expert else ("TASKS", "CAMERAS", "make")
    missing = [word for word in wanted if word not in vars(module)]
    if missing:
        raise SimulatorError("an adapter lacks names", where=module.__name__, got=missing, expected=wanted)
    return module
