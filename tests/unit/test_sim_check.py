"""Each fault that the checker promises to find, made on purpose."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lightwam.config.schema import SimConfig
from lightwam.errors import SetupError, SimulatorError
from lightwam.sim import point
from lightwam.sim.check import check_simulator
from lightwam.sim.point import PointExpert, PointSimulator
from lightwam.sim.simulator import Expert, Simulator, StepOutcome
from lightwam.types import Observation

CONFIG = SimConfig("point", tasks=("red",), cameras=("top", "near"), height=24, width=32, max_steps=60)


def test_a_correct_simulator_has_no_findings() -> None:
    assert check_simulator(CONFIG, "red") == []
    assert check_simulator(replace(CONFIG, action_repeat=3), "yellow") == []


def forced(value, **changes):
    """`value` with fields that the type checks of the test run would refuse, as a user's own classes could hold."""
    for name, change in changes.items():
        object.__setattr__(value, name, change)
    return value


class Faulty(PointSimulator):
    """Base of the faults: `seen` changes what is observed."""

    def observe(self) -> Observation:
        return self.seen(super().observe())

    def seen(self, observation: Observation) -> Observation:
        return observation

    def with_frames(self, observation: Observation, change) -> Observation:
        return forced(observation, frames={name: change(frame) for name, frame in observation.frames.items()})


class Nameless(Faulty):
    state_names = ("x", "x")


class Speechless(Faulty):
    def __init__(self, config: SimConfig, task: str) -> None:
        super().__init__(config, task)
        self.instruction = " "


class OtherTask(Faulty):
    def __init__(self, config: SimConfig, task: str) -> None:
        super().__init__(config, "blue")


class Timeless(Faulty):
    def __init__(self, config: SimConfig, task: str) -> None:
        super().__init__(config, task)
        self.fps = 0.0


class SeesBeforeReset(Faulty):
    def observe(self) -> Observation:
        if self._at is None:
            self.reset(0)
        return super().observe()


class LosesACamera(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return replace(observation, frames={"top": observation.frames["top"]})


class FloatPictures(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return self.with_frames(observation, lambda frame: (frame / 255).astype(np.float32))


class SidewaysPictures(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return self.with_frames(observation, lambda frame: np.ascontiguousarray(frame.swapaxes(0, 1)))


class FlippedViews(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return self.with_frames(observation, lambda frame: frame[::-1])


class Blind(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return self.with_frames(observation, np.zeros_like)


class DoubleState(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return forced(observation, state=observation.state.astype(np.float64))


class InfiniteState(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return replace(observation, state=np.full(2, np.inf, np.float32))


class OtherSentence(Faulty):
    def seen(self, observation: Observation) -> Observation:
        return replace(observation, instruction="something else")


class TakesAnyAction(Faulty):
    def step(self, action: np.ndarray) -> StepOutcome:
        return super().step(np.resize(np.nan_to_num(action), 2))


class RefusesWithAnAssert(Faulty):
    def step(self, action: np.ndarray) -> StepOutcome:
        assert action.shape == (2,) and np.isfinite(action).all()
        return super().step(action)


class ClipsInPlace(Faulty):
    def step(self, action: np.ndarray) -> StepOutcome:
        outcome = super().step(action)
        action *= 0.5
        return outcome


class NumpyBools(Faulty):
    def step(self, action: np.ndarray) -> StepOutcome:
        outcome = super().step(action)
        return forced(outcome, success=np.bool_(outcome.success))


class OneBuffer(Faulty):
    def __init__(self, config: SimConfig, task: str) -> None:
        super().__init__(config, task)
        self.buffers = {name: np.empty((config.height, config.width, 3), np.uint8) for name in config.cameras}

    def seen(self, observation: Observation) -> Observation:
        for name, frame in observation.frames.items():
            self.buffers[name][:] = frame
        return replace(observation, frames=dict(self.buffers))


class RememberTheLastEpisode(Faulty):
    def reset(self, seed: int) -> None:
        before = self._at
        super().reset(seed)
        if before is not None:
            self._at[0] += 0.001 * before[0]  # type: ignore[index]


class Unseeded(Faulty):
    def reset(self, seed: int) -> None:
        super().reset(int(np.random.default_rng().integers(2**31)))


class SeededByItsBirth(Faulty):
    births = 0

    def __init__(self, config: SimConfig, task: str) -> None:
        super().__init__(config, task)
        SeededByItsBirth.births += 1
        self.born = SeededByItsBirth.births

    def reset(self, seed: int) -> None:
        super().reset(seed + 100 * self.born)


class OneSeedOnly(Faulty):
    def reset(self, seed: int) -> None:
        super().reset(0)


class LookingMovesIt(Faulty):
    def seen(self, observation: Observation) -> Observation:
        self._at[0] += 1e-4  # type: ignore[index]
        return observation


class Still(Faulty):
    def step(self, action: np.ndarray) -> StepOutcome:
        super().step(np.zeros_like(action) * action)
        return StepOutcome(False)


class ClosesOnce(Faulty):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True
        super().close()


class NeverCloses(Faulty):
    def close(self) -> None:
        pass


class Crashes(Faulty):
    def reset(self, seed: int) -> None:
        raise OSError("no such device")


FAULTS = {
    Nameless: "state_names must name every number once",
    Speechless: "instruction must not be empty",
    OtherTask: "task must be the configured one",
    Timeless: "fps must be positive",
    SeesBeforeReset: "observe before the first reset must raise a SimulatorError\n  got: no error",
    LosesACamera: "an observation must have the configured cameras",
    FloatPictures: "pictures of 'top'",
    SidewaysPictures: "pictures of 'top'",
    FlippedViews: "must be contiguous",
    Blind: "are empty",
    DoubleState: "the state",
    InfiniteState: "the state must be finite",
    OtherSentence: "must have the simulator's instruction",
    TakesAnyAction: "an action with one number too many must raise a SimulatorError\n  got: no error",
    RefusesWithAnAssert: "must raise a SimulatorError\n  got: AssertionError",
    ClipsInPlace: "step must not change its action",
    NumpyBools: "step must return a StepOutcome",
    OneBuffer: "an observation changed after it was returned",
    RememberTheLastEpisode: "the same seed again, in a used simulator gives another episode",
    Unseeded: "the same seed again, in a used simulator gives another episode",
    SeededByItsBirth: "the same seed in a new simulator gives another episode",
    OneSeedOnly: "seeds change nothing",
    LookingMovesIt: "an episode without observe gives another episode",
    Still: "actions change nothing",
    ClosesOnce: "the simulator raised",
    NeverCloses: "observe after close must raise a SimulatorError\n  got: no error",
    Crashes: "no such device",
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_fault_is_found(fault: type[PointSimulator], words: str) -> None:
    findings = check_simulator(CONFIG, "red", make=fault, make_expert=None)
    assert any(words in str(finding) for finding in findings), list(map(str, findings))


class Hesitant(PointExpert):
    def action(self) -> np.ndarray:
        return super().action() * np.float32(0.0)


class Longwinded(PointExpert):
    def action(self) -> np.ndarray:
        return np.append(super().action(), np.float32(0))


@pytest.mark.parametrize(("expert", "words"), [(Hesitant, "never succeeds"), (Longwinded, "an expert's action")])
def test_a_faulty_expert_is_found(expert: type[PointExpert], words: str) -> None:
    findings = check_simulator(CONFIG, "red", make_expert=expert)  # type: ignore[arg-type]
    assert any(words in str(finding) for finding in findings), list(map(str, findings))


def test_a_simulator_that_cannot_be_made_is_an_error_not_a_finding() -> None:
    def make(config: SimConfig, task: str) -> PointSimulator:
        raise SimulatorError("not installed")

    with pytest.raises(SimulatorError, match="not installed"):
        check_simulator(CONFIG, "red", make=make, make_expert=point.make_expert)


def test_the_adapter_in_the_docs_passes_the_check(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulators.md").read_text(encoding="utf-8")
    adapter, _, check = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_robot").mkdir()
    (tmp_path / "my_robot" / "sim.py").write_text(adapter)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("my_robot", "my_robot.sim"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))  # so that the end of the test removes it
        del sys.modules[module]
    said: list[object] = []
    exec(compile(check, "docs/simulators.md", "exec"), {"print": said.append})
    assert said == []


class Undrawn(Faulty):
    def reset(self, seed: int) -> None:
        raise SetupError("MuJoCo cannot draw", next_step="apt install libegl1")


class Incomplete(Faulty):
    def reset(self, seed: int) -> None:
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(("fault", "words"), [(Undrawn, "cannot draw"), (Incomplete, "no_such_package")])
def test_machine_errors_are_not_blamed_on_the_adapter(fault: type[PointSimulator], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        check_simulator(CONFIG, "red", make=fault, make_expert=None)


def test_an_expert_that_cannot_run_here_is_an_error() -> None:
    def make_expert(config: SimConfig, simulator: Simulator) -> Expert:
        raise SetupError("a package is missing")

    with pytest.raises(SetupError, match="a package is missing"):
        check_simulator(CONFIG, "red", make_expert=make_expert)


def test_the_same_error_in_every_check_is_one_finding() -> None:
    findings = check_simulator(CONFIG, "red", make=Crashes, make_expert=None)
    assert sum("no such device" in str(finding) for finding in findings) == 1
