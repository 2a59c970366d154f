"""A check of a simulator against the promises of `Simulator`: run it on a new adapter before anything else.

It cannot tell whether pictures are upright or whether the instruction describes the task: look at one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32

from lightwam.config.schema import SimConfig
from lightwam.errors import SetupError, SimulatorError
from lightwam.sim import registry
from lightwam.sim.simulator import Expert, Simulator, StepOutcome
from lightwam.types import Observation

STEPS, SEEDS = 12, (0, 1, 2, 3)


@dataclass(frozen=True)
class Finding:
    """One broken promise."""

    what: str
    got: object
    expected: object

    def __str__(self) -> str:
        return f"{self.what}\n  got: {self.got}\n  expected: {self.expected}"


Make = Callable[[SimConfig, str], Simulator]
MakeExpert = Callable[[SimConfig, Simulator], Expert]


def check_simulator(
    config: SimConfig,
    task: str,
    make: Make = registry.make_simulator,
    make_expert: MakeExpert | None = registry.make_expert,
) -> list[Finding]:
    """Return every promise that the simulator of `make(config, task)` breaks; an empty list if it keeps them all.

    Makes three simulators, runs some dozens of steps in each, and a few episodes with the expert (None: without).
    Raises what `make` raises, and SetupError where the machine is at fault and not the adapter.
    """
    fresh, used, other = (make(config, task) for _ in range(3))
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "names and sizes": partial(_names, config, task, fresh),
        "observe": partial(_observation, config, fresh),
        "step": partial(_step, fresh),
        "episodes": partial(_episodes, used, other),
    }
    if make_expert is not None:
        checks["expert"] = partial(_expert, config, used, make_expert)
    for number, simulator in (("first", fresh), ("second", used), ("third", other)):
        checks[f"close of the {number} simulator"] = partial(_close, simulator)
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings += check()
        except SetupError:
            raise
        except ImportError as error:
            what, got = "a package that the simulator imports is missing or broken", f"{type(error).__name__}: {error}"
            raise SetupError(what, where=f"{config.name}/{task}", got=got, next_step="install it") from error
        except Exception as error:  # a simulator may fail in any way, and each is a finding
            got = f"{type(error).__name__}: {error}"
            if all(finding.got != got for finding in findings):  # a reset that fails would be listed by every check
                findings.append(Finding(f"{name}: the simulator raised", got, "no error"))
    return findings


def _names(config: SimConfig, task: str, simulator: Simulator) -> Iterator[Finding]:
    yield from _equal("task must be the configured one", simulator.task, task)
    yield from _equal("cameras must be the configured ones", simulator.cameras, config.cameras)
    for name in ("instruction", "robot"):
        value = getattr(simulator, name)
        if not isinstance(value, str) or not value.strip():
            yield Finding(f"{name} must not be empty", repr(value), "words")
    for name, dim in (("state_names", simulator.state_dim), ("action_names", simulator.action_dim)):
        names = getattr(simulator, name)
        if not len(names) == len(set(names)) == dim > 0:
            yield Finding(f"{name} must name every number once", names, f"{dim} different names, at least 1")
    try:
        json.dumps(dict(simulator.constants))
    except (TypeError, ValueError) as error:
        yield Finding("constants must be plain JSON values", f"{type(error).__name__}: {error}", "a table of them")
    if not simulator.fps > 0:
        yield Finding("fps must be positive", simulator.fps, "> 0")


def _observation(config: SimConfig, simulator: Simulator) -> Iterator[Finding]:
    action = np.zeros(simulator.action_dim, np.float32)
    yield from _refused("observe before the first reset", simulator.observe)
    yield from _refused("step before the first reset", partial(simulator.step, action))
    simulator.reset(SEEDS[0])
    seen = simulator.observe()
    yield from _equal("an observation must have the configured cameras", sorted(seen.frames), sorted(config.cameras))
    shape = (config.height, config.width, 3)
    for camera, picture in seen.frames.items():
        what = f"pictures of {camera!r}"
        if picture.dtype != np.uint8 or picture.shape != shape:
            yield Finding(what, f"{picture.dtype} {picture.shape}", f"uint8 {shape}")
        elif not picture.flags.c_contiguous:
            yield Finding(f"{what} must be contiguous", f"strides {picture.strides}", "contiguous memory")
        elif picture.min() == picture.max():
            yield Finding(f"{what} are empty", f"{picture.flat[0]} everywhere", "a scene")
    if seen.state.dtype != np.float32 or seen.state.shape != (simulator.state_dim,):
        yield Finding("the state", f"{seen.state.dtype} {seen.state.shape}", f"float32 {(simulator.state_dim,)}")
    elif not np.isfinite(seen.state).all():
        yield Finding("the state must be finite", seen.state.tolist(), "finite numbers")
    what = "an observation must have the simulator's instruction"
    yield from _equal(what, repr(seen.instruction), repr(simulator.instruction))


def _step(simulator: Simulator) -> Iterator[Finding]:
    simulator.reset(SEEDS[0])
    dim = simulator.action_dim
    for label, wrong in (
        ("an action with one number too many", np.zeros(dim + 1, np.float32)),
        ("an action with one number too few", np.zeros(dim - 1, np.float32)),
        ("a batch of actions", np.zeros((1, dim), np.float32)),
        ("an action of NaN", np.full(dim, np.nan, np.float32)),
    ):
        yield from _refused(label, partial(simulator.step, wrong))
    before = simulator.observe()
    kept = deepcopy(before)
    for action in _actions(simulator):
        unchanged = action.copy()
        outcome = simulator.step(action)
        if not isinstance(outcome, StepOutcome) or {type(outcome.success), type(outcome.ended)} != {bool}:
            yield Finding("step must return a StepOutcome", outcome, "StepOutcome(success: bool, ended: bool)")
            return
        if not np.array_equal(unchanged, action):
            yield Finding("step must not change its action", action, unchanged)
            return
        if outcome.ended:
            break
    simulator.observe()
    if _difference(before, kept):
        yield Finding("an observation changed after it was returned", "memory that is written again", "its own arrays")


def _episodes(used: Simulator, other: Simulator) -> Iterator[Finding]:
    starts = []
    for seed in SEEDS:
        used.reset(seed)
        starts.append(used.observe())
    if not any(_difference(starts[0], start) for start in starts[1:]):
        yield Finding("seeds change nothing", f"the same first observation for the seeds {SEEDS}", "different starts")
    first = _episode(used, SEEDS[0])
    if not _difference(first[0], first[-1]):
        yield Finding("actions change nothing", f"the same observation after {len(first) - 1} actions", "motion")
    _episode(used, SEEDS[1])
    yield from _same("the same seed again, in a used simulator", first, _episode(used, SEEDS[0]))
    yield from _same("the same seed in a new simulator", first, _episode(other, SEEDS[0]))
    yield from _same("an episode without observe", first[-1:], _episode(used, SEEDS[0], observe_every_step=False))
    yield from _same("a second observe without a step", first[-1:], [used.observe()])


def _expert(config: SimConfig, simulator: Simulator, make_expert: MakeExpert) -> Iterator[Finding]:
    for seed in SEEDS:
        simulator.reset(seed)
        try:
            expert = make_expert(config, simulator)
        except SetupError:
            raise
        except SimulatorError:  # the adapter has none for this task
            return
        for _ in range(config.max_steps):
            action = expert.action()
            if action.dtype != np.float32 or action.shape != (simulator.action_dim,) or not np.isfinite(action).all():
                got, expected = f"{action.dtype} {action.shape} {action}", f"float32 {(simulator.action_dim,)}, finite"
                yield Finding("an expert's action", got, expected)
                return
            outcome = simulator.step(action)
            if outcome.success:
                return
            if outcome.ended:
                break
    yield Finding("the expert never succeeds", f"seeds {SEEDS}, {config.max_steps} steps each", "at least one success")


def _close(simulator: Simulator) -> Iterator[Finding]:
    simulator.close()
    simulator.close()
    yield from _refused("observe after close", simulator.observe)


def _refused(label: str, call: Callable[[], object]) -> Iterator[Finding]:
    got = "no error"
    try:
        call()
    except SetupError:
        raise
    except SimulatorError:
        return
    except Exception as error:  # any other error is the finding
        got = f"{type(error).__name__}: {error}"
    yield Finding(f"{label} must raise a SimulatorError", got, "SimulatorError")


def _actions(simulator: Simulator) -> Float32[np.ndarray, "steps A"]:
    return np.random.default_rng(0).uniform(-1, 1, (STEPS, simulator.action_dim)).astype(np.float32)


def _episode(simulator: Simulator, seed: int, observe_every_step: bool = True) -> list[Observation]:
    """Return the observations of one episode of fixed random actions: all, or only the last."""
    simulator.reset(seed)
    seen = [simulator.observe()] if observe_every_step else []
    for action in _actions(simulator):
        ended = simulator.step(action).ended
        if observe_every_step:
            seen.append(simulator.observe())
        if ended:
            break
    return seen or [simulator.observe()]


def _equal(what: str, got: object, expected: object) -> Iterator[Finding]:
    if got != expected:
        yield Finding(what, got, expected)


def _same(label: str, first: list[Observation], second: list[Observation]) -> Iterator[Finding]:
    if len(first) != len(second):
        yield Finding(f"{label} gives another episode", f"{len(second)} observations", len(first))
    for index, (a, b) in enumerate(zip(first, second, strict=False)):  # another length is a finding already
        if difference := _difference(a, b):
            got = f"{difference} at observation {index} of {len(first)}"
            yield Finding(f"{label} gives another episode", got, "the same bits")
            return


def _difference(a: Observation, b: Observation) -> str:
    """Describe the difference; "" when the two are equal bit for bit."""
    if not np.array_equal(a.state, b.state):
        return f"states differ by up to {np.abs(a.state - b.state).max():.3g}"
    for camera in a.frames:
        if not np.array_equal(a.frames[camera], b.frames[camera]):
            return f"pictures of {camera!r} differ"
    return ""
