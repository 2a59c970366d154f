"""evaluation/probe.py, seen.py: predicted frames, real frames and attention are recorded at moments of an episode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_run import FRAMES, PLAN, SIZE, TASKS, write_run

from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.future_errors import FutureSettings, measure_futures, read_futures
from lightwam.evaluation.seen import rms_error, see_simulated
from lightwam.policy.policy import Policy
from lightwam.report import write_report
from lightwam.report.evidence import read_evidence
from lightwam.sim.point import PointSimulator
from lightwam.sim.registry import make_simulator
from lightwam.sim.simulator import StepOutcome
from lightwam.types import Observation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "point")


class FakePolicy(Policy):
    """Moves right; predicts that the present frame stays; attends uniformly."""

    def __init__(self, codec: object, latents: object) -> None:
        self.recipe = replace(PLAN, eval=replace(PLAN.eval, replan=3))
        self.codec, self.latents = codec, latents
        self.asked, self.step = 0, 7

    def act(self, observation: object) -> np.ndarray:
        self.asked += 1
        return np.tile(np.asarray([0.5, 0.0], np.float32), (8, 1))

    def imagine(self, observation: object, seed: int, num_steps: int, num_chunks: int = 1) -> np.ndarray:
        return self.codec.canvas(observation.frames)[None].repeat(1 + (FRAMES - 1) * num_chunks, 0)

    def attention(self, observation: object) -> list[np.ndarray]:
        return [np.full((4, 2, 2), 0.25, np.float32)] * 2


class Counting(PointSimulator):
    """Notes at which steps it was drawn, and succeeds with the fourth."""

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self.steps, self.drawn = 0, list[int]()

    def observe(self) -> Observation:
        self.drawn.append(self.steps)
        return super().observe()

    def step(self, action: np.ndarray) -> StepOutcome:
        super().step(action)
        self.steps += 1
        return StepOutcome(self.steps == 4)


@pytest.fixture
def policy() -> FakePolicy:
    import torch

    from lightwam.data.codec import Codec
    from lightwam.data.statistics import measure
    from lightwam.encoders.dct import DctLatents

    plan = PLAN
    both = measure(np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32))
    latents = DctLatents.fit(plan.latents, torch.rand(4, 3, SIZE, SIZE) * 2 - 1)
    return FakePolicy(Codec(plan.codec, both, both), latents)


@pytest.mark.parametrize(
    ("stop_at_success", "canvases", "drawn", "asked"),
    [(True, [0, 2, 4], [0, 2, 3, 4], 2), (False, [0, 2, 4, 6, 8], [0, 2, 3, 4, 6, 8], 3)],
)
def test_an_episode_is_seen_up_to_its_end(
    policy: FakePolicy, stop_at_success: bool, canvases: list[int], drawn: list[int], asked: int
) -> None:
    """Success comes with the fourth step, the policy is asked every three."""
    simulator = Counting(PLAN.sim, "red")
    seen = see_simulated(
        policy,
        simulator,
        1,
        canvases=range(0, 99, 2),
        observations=[2],
        last_step=8,
        stop_at_success=stop_at_success,
    )
    assert list(seen.canvases) == canvases and list(seen.observations) == [2]
    assert simulator.drawn == drawn and policy.asked == asked


def test_pictures_errors_are_root_mean_squares() -> None:
    black, grey = np.zeros((2, 3, 4, 4, 3), np.uint8), np.full((2, 3, 4, 4, 3), 6, np.uint8)
    grey[1] += 4
    assert rms_error(black, grey).tolist() == [6, 10]
    assert rms_error(black[:, :1], grey).tolist() == [6, 10]
    half = black[0].copy()
    half[:, :2] = 8
    assert float(rms_error(half, black[0])) == pytest.approx(np.sqrt(32))


def test_moments_are_recorded_with_the_real_future(policy: FakePolicy, run: Path) -> None:
    from lightwam.evaluation.probe import record_probe
    from lightwam.sim.registry import make_simulator as make

    plan, path = policy.recipe, run / "eval" / "probe.npz"
    simulators = {task: make(plan.sim, task) for task in TASKS}
    record_probe(policy, simulators, path, moments=(0, 5), imagine_steps=3)
    probe = read_evidence(run).probe
    assert probe is not None
    assert probe.tasks == ("red", "red", "blue", "blue") and probe.steps.tolist() == [0, 5, 0, 5]
    assert probe.imagine_steps == 3 and probe.fps == simulators["red"].fps and not probe.real_is_pad.any()

    alone = make(plan.sim, "red")
    alone.reset(plan.eval.first_seed)
    came = []
    for _ in range(14):
        came.append(policy.codec.canvas(alone.observe().frames))
        alone.step(np.asarray([0.5, 0.0], np.float32))
    assert (probe.real[0] == np.stack(came[0:9:2])).all()
    assert (probe.real[1] == np.stack(came[5:14:2])).all()
    assert (probe.imagined[1] == came[5]).all()
    assert (probe.real_coded[0, 1] == probe.real_coded[0, 4]).all()
    assert policy.asked == 2 * len(range(0, 14, 3))
    write_report(run)


def test_an_episode_that_ends_early_is_marked(policy: FakePolicy, run: Path) -> None:
    from lightwam.evaluation.probe import record_probe
    from lightwam.sim.registry import make_simulator as make
    from lightwam.sim.simulator import StepOutcome

    simulator = make(policy.recipe.sim, "red")
    step, count = simulator.step, iter(range(100))
    simulator.step = lambda action: StepOutcome(step(action).success, next(count) == 3)
    record_probe(policy, {"red": simulator}, run / "eval" / "probe.npz", moments=(0, 30))
    probe = read_evidence(run).probe
    assert probe is not None
    assert probe.real_is_pad.tolist() == [[False, False, False, True, True]]
    assert (probe.real[0, 3] == probe.real[0, 2]).all() and (probe.real[0, 2] != probe.real[0, 0]).any()
    with pytest.raises(ConfigError, match="no moment"):
        record_probe(policy, {}, run / "eval" / "probe.npz")


def test_errors_are_means_over_all_moments_by_chunk(policy: FakePolicy, run: Path) -> None:
    """The policy imagines that nothing moves, so that its error is the frozen picture's."""
    plan = policy.recipe
    policy.recipe = replace(plan, sim=replace(plan.simulation, max_steps=20))
    simulators = {task: make_simulator(policy.recipe.simulation, task) for task in TASKS}
    errors = measure_futures(policy, simulators, run / "eval", FutureSettings(2, 2, 1), say=lambda line: None)
    found = read_futures(run / "eval")
    assert found is not None and found[0] == errors
    assert errors.first_seed == plan.eval.first_seed and errors.held_out and errors.horizon == 8
    assert {row.task for row in errors.rows} == set(TASKS)

    alone, canvases = simulators["red"], []
    alone.reset(plan.eval.first_seed)
    for _ in range(21):
        canvases.append(policy.codec.canvas(alone.observe().frames).astype(np.float64))
        if (outcome := alone.step(np.asarray([0.5, 0.0], np.float32))).success or outcome.ended:
            break
    first, second = (row for row in errors.rows if row.task == "red")
    assert (first.chunk, first.episodes, second.chunk) == (1, 2, 2) and first.moments > second.moments
    assert first.imagined == first.frozen and first.closer == 0 and first.gain_95 == (0, 0)
    assert first.coded is not None and second.coded is None
    policy.recipe = replace(policy.recipe, sim=replace(plan.simulation, max_steps=8))
    step, executed = alone.step, []
    alone.step = lambda action: executed.append(action) or step(action)
    (row, *_) = measure_futures(
        policy, {"red": alone}, run / "eval", FutureSettings(1, 2, 1), say=lambda line: None
    ).rows
    expected = np.sqrt(np.mean([np.square(canvases[k] - canvases[0]) for k in (2, 4, 6, 8)]))
    assert len(executed) == 8  # as many as an evaluation executes
    assert row.moments == 1 and row.gain_95 is None and abs(row.frozen - expected) < 0.01
    html = write_report(run).read_text()
    assert "How near, over all moments" in html and "one episode" in html


def test_without_a_whole_chunk_there_is_nothing_to_measure(policy: FakePolicy, run: Path) -> None:
    policy.recipe = replace(policy.recipe, sim=replace(policy.recipe.simulation, max_steps=7))
    simulator = make_simulator(policy.recipe.simulation, "red")
    with pytest.raises(ConfigError, match="whole chunk"):
        measure_futures(policy, {"red": simulator}, run / "eval", FutureSettings(1), say=lambda line: None)
    assert read_futures(run / "eval") is None
    (run / "eval" / "futures.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"futures\.json"):
        read_futures(run / "eval")
