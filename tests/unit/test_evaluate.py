"""evaluate.py: counting, going on where it stopped, and that a policy that knows the way is counted as one."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from in_here import InHere

from lightwam.cli import eval as eval_command
from lightwam.config.checks import check_recipe
from lightwam.config.schema import EvalConfig, Recipe, SimConfig, with_simulator
from lightwam.config.strict_json import from_dict
from lightwam.errors import CheckpointError, ConfigError, SimulatorError
from lightwam.evaluation import evaluate as module
from lightwam.evaluation.episodes import EpisodeRow, read_episodes, task_files
from lightwam.evaluation.evaluate import evaluate, require_members
from lightwam.evaluation.rollouts import EpisodeJob, StepResult, run_episodes
from lightwam.evaluation.statistics import wilson
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.sim.point import COLOURS, PointSimulator
from lightwam.system.jobs import JobRunner
from lightwam.system.timing import percentiles
from lightwam.system.workers import Interrupt, Outcome, Workers
from lightwam.types import Observation


class Seeing:
    """A policy that finds the dot of the named colour in the picture and goes there: right for the right reasons."""

    n_obs_steps = 1

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.step, self.asked = recipe, 12, 0

    def identity(self) -> dict[str, Any]:
        return {"recipe": self.recipe.name, "checkpoint_step": self.step}

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        check_recipe(with_simulator(self.recipe, sim, settings))

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        self.asked += len(observations)
        return np.stack([self._chunk(observation) for observation in observations])

    def _chunk(self, observation: Observation) -> np.ndarray:
        colour = next(name for name in COLOURS if name in observation.instruction.split())
        frame = observation.frames["top"]
        rows, columns = np.nonzero((frame == np.array(COLOURS[colour], np.uint8)).all(-1))
        size = len(frame)
        goal = np.array([(columns.mean() + 0.5) / size * 2 - 1, 1 - (rows.mean() + 0.5) / size * 2])
        at, chunk = observation.state.astype(float), []
        for _ in range(self.recipe.model.horizon):
            chunk.append(np.clip((goal - at) / 0.1, -1, 1))
            at = at + 0.1 * chunk[-1]
        return np.array(chunk, np.float32)


@pytest.fixture
def in_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightwam.system.workers.Workers", InHere)


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe, in_here: None) -> Seeing:
    """evaluate() loads this policy, whatever the run."""
    policy = Seeing(tiny_recipe)
    monkeypatch.setattr(Policy, "load", lambda run, step=None, **where: policy)
    return policy


def quiet(line: str) -> None:
    """What is said is not of interest."""


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.27754),
        (10, 10, 0.72246, 1.0),
        (5, 10, 0.23659, 0.76341),
        (81, 263, 0.2553, 0.3662),  # R. G. Newcombe, 1998, table I
        (15, 148, 0.0624, 0.1605),  # the same
        (0, 20, 0.0, 0.1611),  # the same
        (1, 29, 0.0061, 0.1718),  # the same
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_percentiles() -> None:
    assert percentiles([]) == {}
    assert percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([float(i) for i in range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def expert_steps(recipe: Recipe, task: str, seed: int) -> int:
    """How soon the scripted expert is there."""
    simulator = registry.make_simulator(recipe.sim, task)
    simulator.reset(seed)
    expert = registry.make_expert(recipe.sim, simulator)
    return next(step for step in range(1, 100) if simulator.step(expert.action()).success)


def test_a_policy_that_sees_scores_what_the_expert_scores(tmp_path: Path, seeing: Seeing) -> None:
    result = evaluate(tmp_path, say=quiet)
    assert (result["successes"], result["trials"]) == (4, 4)
    assert {task: row["successes"] for task, row in result["tasks"].items()} == {"red": 2, "blue": 2}
    for (task, seed), row in read_episodes(tmp_path / "eval").items():
        assert row["success"]
        assert row["steps"] == row["steps_to_success"]
        # a picture of 32 pixels is a little less exact than knowing the target
        assert abs(row["steps"] - expert_steps(seeing.recipe, task, seed)) <= 2


def test_stages_that_a_simulator_tells_are_counted(
    tmp_path: Path, seeing: Seeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = property(lambda self: {"moved": True, "near": self._at[0] > 0})
    monkeypatch.setattr(PointSimulator, "progress", near)
    result = evaluate(tmp_path, say=quiet)
    rows = [json.loads(line) for line in (tmp_path / "eval" / "episodes.jsonl").read_text().splitlines()]
    for task, row in result["tasks"].items():
        count = sum(each["progress"]["near"] for each in rows if each["task"] == task)
        assert row["progress"] == {"moved": 2, "near": count}
        assert f"moved 2, near {count}" in eval_command.table(result)
    assert all(from_dict(EpisodeRow, row).progress == row["progress"] for row in rows)
    del rows[0]["progress"]
    assert from_dict(EpisodeRow, rows[0]).progress is None


def test_another_tasks_sentence_leads_elsewhere(tmp_path: Path, seeing: Seeing) -> None:
    swapped = {"red": "move to the blue dot", "blue": "move to the red dot"}
    result = evaluate(tmp_path, sentences=swapped, say=quiet)
    assert result["successes"] < result["trials"]
    assert result["protocol"]["sentences"] == swapped
    failed = [row for row in read_episodes(tmp_path / "eval").values() if not row["success"]]
    assert all(row["steps"] == 40 and row["steps_to_success"] is None for row in failed)


def test_written_layout_is_v30(tmp_path: Path, seeing: Seeing) -> None:
    returned = evaluate(tmp_path, say=quiet)
    result = json.loads((tmp_path / "eval" / "result.json").read_text())
    assert result == json.loads(json.dumps(returned))
    assert result.keys() == {"successes", "trials", "interval_95", "tasks", "protocol", "latency_ms", "wall_seconds"}
    assert result["tasks"]["red"].keys() == {"successes", "trials", "interval_95", "instruction"}
    assert result["tasks"]["red"]["instruction"] == "move to the red dot"
    assert result["interval_95"] == pytest.approx(wilson(4, 4))
    assert result["latency_ms"].keys() == {"p50", "p95", "p99"}
    assert result["wall_seconds"]["total"] > 0
    protocol = result["protocol"]
    assert protocol["checkpoint_step"] == 12
    assert protocol["eval"] == {"trials": 2, "replan": 4, "first_seed": 1_000_000}
    assert protocol["sim"]["max_steps"] == 40
    assert {"python", "torch", "numpy", "lightwam"} <= protocol["versions"].keys()
    rows = [json.loads(line) for line in (tmp_path / "eval" / "episodes.jsonl").read_text().splitlines()]
    names = {"task", "seed", "success", "steps", "steps_to_success", "seconds", "wall_seconds", "infer_ms", "video"}
    names |= {"instruction"}
    assert [row.keys() for row in rows] == [names] * 4
    assert all(len(row["infer_ms"]) == math.ceil(row["steps"] / 4) for row in rows)
    assert sorted((row["task"], row["seed"]) for row in rows) == [
        (task, 1_000_000 + i) for task in ("blue", "red") for i in (0, 1)
    ]


def test_another_world_than_the_runs(tmp_path: Path, seeing: Seeing) -> None:
    """And its result says so; what the recipe says of demonstrations of other tasks does not matter."""
    recipe = seeing.recipe
    seeing.recipe = replace(recipe, collect=replace(recipe.collect, more_demos=(("blue", 1),)))
    result = evaluate(tmp_path, sim=replace(recipe.sim, tasks=("red", "green"), max_steps=39), say=quiet)
    assert list(result["tasks"]) == ["red", "green"]
    assert result["protocol"]["sim"]["max_steps"] == 39 and result["protocol"]["constants"] == {}


def test_a_slot_stays_with_its_task_and_slots_do_not_share_one() -> None:
    """Loading a task takes seconds in some simulators."""

    class OneStepPool(InHere[Any, Any]):
        """Two slots whose episodes end together, when their first actions are executed."""

        idle = (0, 1)  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__(2, quiet)
            self.begun: list[tuple[int, str, int]] = []
            self.ends = list[tuple[int, Outcome[StepResult]]]()

        def submit(self, job: Any, slot: int) -> None:
            self.begun.append((slot, job.task, job.seed))
            self.ends.append((slot, Outcome(StepResult(None, 1, True))))

        def answers(self, timeout_seconds: float) -> Any:
            ends, self.ends = self.ends, []
            return iter(ends)

    pool = OneStepPool()
    todo = [EpisodeJob(task, seed) for seed in (1, 2, 3) for task in ("a", "b", "c")]
    assert len(list(run_episodes(JobRunner(pool, Interrupt(), "eval", quiet), todo, lambda waiting: []))) == 9
    assert [task for slot, task, _ in pool.begun if slot == 0] == ["a", "a", "a", "c", "c"]
    assert [task for slot, task, _ in pool.begun if slot == 1] == ["b", "b", "b", "c"]
    assert len(set(pool.begun)) == 9


def test_videos_show_the_episode_from_its_first_to_its_last_step(tmp_path: Path, seeing: Seeing) -> None:
    evaluate(tmp_path, say=quiet)
    filmed = [row for row in read_episodes(tmp_path / "eval").values() if row["video"]]
    assert [(row["task"], row["seed"]) for row in filmed] == [("red", 1_000_000), ("blue", 1_000_000)]
    folder = tmp_path / "eval" / "videos"
    assert sorted(path.name for path in folder.iterdir()) == sorted(Path(row["video"]).name for row in filmed)
    for row in filmed:
        assert row["video"] == f"videos/{row['task']}-{row['seed']}-success.mp4"
        with av.open(str(tmp_path / "eval" / row["video"])) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(pictures) == row["steps"] + 1
        simulator = registry.make_simulator(replace(seeing.recipe.sim, height=240, width=240), row["task"])
        simulator.reset(row["seed"])
        assert np.abs(pictures[0].astype(float) - simulator.observe().frames["top"]).mean() < 4
        for action in np.load(tmp_path / "eval" / "actions" / f"{row['task']}-{row['seed']}.npy"):
            outcome = simulator.step(action)
        assert outcome.success
        assert np.abs(pictures[-1].astype(float) - simulator.observe().frames["top"]).mean() < 4


def test_every_episode_can_begin_disturbed(tmp_path: Path, seeing: Seeing) -> None:
    plain, moved = seeing.recipe.eval, replace(seeing.recipe.eval, disturb="object")
    result = evaluate(tmp_path, moved, say=quiet)
    assert result["protocol"]["disturb"] == "object" and result["successes"] == 4  # it sees where the dot is
    row = read_episodes(tmp_path / "eval")["red", 1_000_000]
    with av.open(str(tmp_path / "eval" / row["video"])) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)
    simulator = registry.make_simulator(replace(seeing.recipe.sim, height=240, width=240), "red")
    simulator.reset(1_000_000)
    assert np.abs(first - simulator.observe().frames["top"]).mean() > 4
    simulator.move_object(np.random.default_rng(1_000_000))
    assert np.abs(first - simulator.observe().frames["top"]).mean() < 4
    with pytest.raises(CheckpointError, match="other settings"):
        evaluate(tmp_path, plain, say=quiet)
    assert "disturb" not in json.dumps(evaluate(tmp_path, plain, folder="plain", say=quiet)["protocol"])


def test_a_disturbance_that_the_simulator_lacks_is_refused_first(
    tmp_path: Path, seeing: Seeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PointSimulator, "disturbances", ("camera",))
    with pytest.raises(SimulatorError, match="no disturbance 'object'") as caught:
        evaluate(tmp_path, replace(seeing.recipe.eval, disturb="object"), say=quiet)
    assert "camera or frozen" in str(caught.value) and not seeing.asked


def test_only_missing_episodes_are_run(tmp_path: Path, seeing: Seeing) -> None:
    whole = evaluate(tmp_path, say=quiet)
    path = tmp_path / "eval" / "episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    earlier = {"seconds": 77.0, "wall_seconds": 500.0, "infer_ms": [9000.0] * 50}
    marked = [json.dumps(json.loads(line) | earlier) + "\n" for line in lines[:2]]
    path.write_text("".join(marked) + lines[2][:10])  # a kill in the middle of a line
    (tmp_path / "eval" / "result.json").unlink()  # written at the end
    seeing.asked, said = 0, []
    again = evaluate(tmp_path, say=said.append)
    assert any(line.startswith("eval 4/4 (100 %)") for line in said)  # though its rate is that of two
    assert 0 < seeing.asked <= sum(math.ceil(json.loads(line)["steps"] / 4) for line in lines[2:])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["seconds"] == 77.0 for row in rows] == [True, True, False, False]

    def outcome(line: str) -> tuple[Any, ...]:
        row = json.loads(line)
        return row["task"], row["seed"], row["success"], row["steps"], row["video"]

    assert sorted(map(outcome, path.read_text().splitlines())) == sorted(map(outcome, lines))
    assert again["tasks"] == whole["tasks"]
    # what was measured before the kill counts too
    assert again["latency_ms"]["p50"] == 9000 > whole["latency_ms"]["p99"]
    assert 500 < rows[2]["wall_seconds"] <= rows[3]["wall_seconds"] < again["wall_seconds"]["total"] < 560


def test_a_finished_evaluation_keeps_what_was_measured(tmp_path: Path, seeing: Seeing) -> None:
    first = evaluate(tmp_path, say=quiet)
    seeing.asked = 0
    again = evaluate(tmp_path, say=quiet)
    assert seeing.asked == 0
    assert again["latency_ms"] == first["latency_ms"] is not None
    assert again["wall_seconds"] == first["wall_seconds"]


def test_an_evaluation_under_other_settings_is_refused(tmp_path: Path, seeing: Seeing) -> None:
    settings = seeing.recipe.eval
    evaluate(tmp_path, say=quiet)
    before = (tmp_path / "eval" / "episodes.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="other settings") as caught:
        evaluate(tmp_path, replace(settings, replan=2), say=quiet)
    assert "'eval'" in str(caught.value)
    with pytest.raises(CheckpointError, match="sentences"):
        evaluate(tmp_path, sentences={"red": "go"}, say=quiet)
    seeing.step = 13
    with pytest.raises(CheckpointError, match="checkpoint_step"):
        evaluate(tmp_path, say=quiet)
    seeing.step = 12
    assert (tmp_path / "eval" / "episodes.jsonl").read_bytes() == before
    evaluate(tmp_path, replace(settings, replan=2), folder="other", say=quiet)  # there is the way out
    evaluate(tmp_path, replace(settings, videos_per_task=0), say=quiet)  # and what no result depends on may change


def test_an_evaluation_is_extended_by_its_missing_episodes(tmp_path: Path, seeing: Seeing) -> None:
    settings, folder = seeing.recipe.eval, tmp_path / "eval"
    evaluate(tmp_path, replace(settings, trials=1), say=quiet)
    first, seeing.asked, said = (folder / "episodes.jsonl").read_text().splitlines(), 0, []
    result = evaluate(tmp_path, replace(settings, trials=3), say=said.append)
    assert "eval: 2 episodes are finished, 4 are missing" in said
    assert result["trials"] == 6 and result["extended_from"] == [1] and result["protocol"]["eval"]["trials"] == 3
    rows = read_episodes(folder)
    assert {key[1] for key in rows} == {1_000_000, 1_000_001, 1_000_002}
    assert seeing.asked == sum(math.ceil(row["steps"] / 4) for key, row in rows.items() if key[1] > 1_000_000)
    assert [rows[row["task"], row["seed"]] for row in map(json.loads, first)] == [
        row for key, row in rows.items() if key[1] == 1_000_000
    ]
    assert json.loads((folder / "protocol.json").read_text())["eval"]["trials"] == 3
    assert evaluate(tmp_path, replace(settings, trials=3), say=quiet)["extended_from"] == [1]
    assert evaluate(tmp_path, replace(settings, trials=4), say=quiet)["extended_from"] == [1, 3]


def test_trials_that_would_leave_out_finished_episodes_are_refused(tmp_path: Path, seeing: Seeing) -> None:
    settings = seeing.recipe.eval
    evaluate(tmp_path, replace(settings, trials=2), say=quiet)
    before = (tmp_path / "eval" / "protocol.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"eval.trials must not be less[\s\S]*got: 1\s+expected: at least 2"):
        evaluate(tmp_path, replace(settings, trials=1), say=quiet)
    with pytest.raises(CheckpointError, match="other settings"):
        evaluate(tmp_path, replace(settings, trials=3, first_seed=999_999), say=quiet)
    assert (tmp_path / "eval" / "protocol.json").read_bytes() == before


def test_an_attempt_without_a_finished_episode_binds_no_folder(
    tmp_path: Path, seeing: Seeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = seeing.recipe.eval
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(Seeing, "act_batch", lambda self, observations: 1 / 0)
        evaluate(tmp_path, settings, say=quiet)
    assert (tmp_path / "eval" / "protocol.json").exists()
    assert evaluate(tmp_path, replace(settings, trials=1, replan=2), say=quiet)["trials"] == 2


class Remembering(Seeing):
    """The same, acting on several control steps; it notes what it is shown."""

    n_obs_steps = 3

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.seen: list[Observation] = []

    def act_batch(self, observations: Sequence[Observation]) -> np.ndarray:
        self.seen.extend(observations)
        return super().act_batch(observations)


@pytest.mark.parametrize("replan", [1, 2, 4])
def test_a_policy_gets_the_history_that_it_asks_for(
    tmp_path: Path, tiny_recipe: Recipe, in_here: None, monkeypatch: pytest.MonkeyPatch, replan: int
) -> None:
    """Observed at every step that is needed, also over the border of two chunks; and at no other."""
    drawn, observe = [0], PointSimulator.observe
    monkeypatch.setattr(PointSimulator, "observe", lambda self: (drawn.append(1), observe(self))[1])
    policy = Remembering(tiny_recipe)
    settings = replace(tiny_recipe.eval, replan=replan, trials=2, videos_per_task=0)
    result = evaluate(tmp_path / "run", settings, policy=policy, say=quiet)
    num_drawn = sum(drawn)
    plain = evaluate(tmp_path / "plain", settings, policy=Seeing(tiny_recipe), say=quiet)
    assert [result[name] for name in ("successes", "tasks")] == [plain[name] for name in ("successes", "tasks")]
    episodes = {seen.episode for seen in policy.seen}
    assert len(episodes) == 4, "two tasks, two seeds"
    needed = 0
    for number in episodes:
        asked = [seen for seen in policy.seen if seen.episode == number]
        assert [seen.step for seen in asked] == [replan * i for i in range(len(asked))]
        simulator = registry.make_simulator(tiny_recipe.sim, asked[0].instruction.split()[-2])
        seed = next(seed for seed in (1_000_000, 1_000_001) if _starts_like(simulator, seed, asked[0]))
        simulator.reset(seed)
        states = [simulator.observe().state]
        for action in np.load(tmp_path / "run" / "eval" / "actions" / f"{simulator.task}-{seed}.npy"):
            simulator.step(action)
            states.append(simulator.observe().state)
        for seen in asked:
            steps = [max(0, seen.step + back) for back in (-2, -1)]
            assert [earlier.step for earlier in seen.history] == steps
            assert all(earlier.episode == number and not earlier.history for earlier in seen.history)
            assert all(earlier.instruction == seen.instruction for earlier in seen.history)
            for earlier in (*seen.history, seen):
                np.testing.assert_array_equal(earlier.state, states[earlier.step])
        # the last chunk is not finished, and its last steps may have been drawn
        needed += len({step for seen in asked for step in (seen.step - 2, seen.step - 1, seen.step) if step >= 0})
    assert needed <= num_drawn <= needed + 2 * len(episodes)


def _starts_like(simulator: Any, seed: int, seen: Observation) -> bool:
    simulator.reset(seed)
    return bool((simulator.observe().frames["top"] == seen.frames["top"]).all())


def test_a_policy_that_lacks_a_member_is_refused(tiny_recipe: Recipe) -> None:
    class Older:
        recipe = tiny_recipe
        identity = check_evaluation = act_batch = None

    require_members(Seeing(tiny_recipe))
    with pytest.raises(ConfigError, match=r"all members of EvaluablePolicy[\s\S]*Older[\s\S]*no n_obs_steps"):
        require_members(Older())


def test_no_step_is_executed_that_was_not_supervised(tmp_path: Path, seeing: Seeing) -> None:
    with pytest.raises(ConfigError, match="never supervised"):
        evaluate(tmp_path, EvalConfig(trials=1, replan=9), say=quiet)
    assert not (tmp_path / "eval").exists()


def test_a_real_run_is_evaluated_and_replan_steps_are_executed(tiny: Any, in_here: None) -> None:
    result = evaluate(tiny.run, EvalConfig(trials=1, replan=3, workers=1, videos_per_task=0), say=quiet)
    assert result["trials"] == 2
    identity = {"recipe": "point", "checkpoint_step": 6, "weights": "ema", "computes": "float32 on cpu"}
    assert result["protocol"].items() >= identity.items()
    assert Policy.load(tiny.run, ema=False).identity()["weights"] == "last"
    policy = Policy.load(tiny.run)
    simulator = registry.make_simulator(tiny.recipe.sim, "blue")
    simulator.reset(1_000_000)
    actions = np.load(tiny.run / "eval" / "actions" / "blue-1000000.npy")
    for start in range(0, len(actions), 3):
        chunk = policy.act(simulator.observe())[:3]
        np.testing.assert_allclose(actions[start : start + 3], chunk[: len(actions) - start], atol=1e-4)
        for action in actions[start : start + 3]:
            simulator.step(action)


ROUGH_WORLD = '''
import os, pathlib, signal
from lightwam.sim import point

TASKS = ("rough/red", "rough-red", "rough/blue")
CAMERAS = point.CAMERAS

class RoughSimulator(point.PointSimulator):
    """Ends its process at the moments that a file of the folder FATES names, once for every letter in it."""
    def __init__(self, config, task):
        super().__init__(config, task.removeprefix("rough")[1:])
        self.name, self.moment = task.replace("/", "_"), "film" if config.height == 240 else "play"

    def reset(self, seed):
        super().reset(seed)
        self.seed, self.steps = seed, 0

    def step(self, action):
        self.steps += 1
        fate = pathlib.Path(os.environ["FATES"], f"{self.name} {self.seed} {self.moment}")
        if self.steps == 5 and fate.exists() and (left := fate.read_text()):
            fate.write_text(left[1:])
            os.kill(os.getpid(), signal.SIGKILL) if left[0] == "k" else os._exit(3)
        return super().step(action)

def make(config, task):
    return RoughSimulator(config, task)
'''


@pytest.fixture
def rough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe) -> Seeing:
    """A policy for a world that kills, real worker processes, and tasks whose names want the same files."""
    (tmp_path / "modules" / "rough_world").mkdir(parents=True)
    (tmp_path / "modules" / "rough_world" / "sim.py").write_text(ROUGH_WORLD)
    (tmp_path / "fates").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("FATES", str(tmp_path / "fates"))
    for name in ("rough_world.sim", "rough_world"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    sim = replace(tiny_recipe.sim, name="rough_world.sim", tasks=("rough/red", "rough-red", "rough/blue"))
    return Seeing(replace(tiny_recipe, sim=sim, eval=replace(tiny_recipe.eval, workers=2, trials=2)))


def outcomes(place: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    """All that an evaluation left of each episode, its timings apart; the films as what can be seen in them."""
    names = task_files(["rough/red", "rough-red", "rough/blue"])
    found = {}
    for (task, seed), row in read_episodes(place).items():
        actions = np.load(place / "actions" / f"{names[task]}-{seed}.npy")
        film = (place / row["video"]).read_bytes() if row["video"] else None
        found[task, seed] = (row["success"], row["steps"], len(row["infer_ms"]), row["video"], film, actions.tobytes())
    return found


def test_episodes_and_films_survive_their_workers(
    tmp_path: Path, rough: Seeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightwam.system.workers.Workers", InHere)
    undisturbed = evaluate(tmp_path / "a", policy=rough, say=quiet)
    fates, said, first = tmp_path / "fates", [], 1_000_000
    (fates / f"rough-red {first} film").write_text("x")
    (fates / f"rough-red {first + 1} play").write_text("kxkk")
    monkeypatch.setattr("lightwam.system.workers.Workers", Workers)
    with pytest.raises(SimulatorError, match=rf"3 times in a row\s+where: task 'rough-red', seed {first + 1}\s"):
        evaluate(tmp_path / "b", policy=rough, say=said.append)
    kept = read_episodes(tmp_path / "b" / "eval")
    assert 0 < len(kept) < 6
    result = evaluate(tmp_path / "b", policy=rough, say=said.append)
    killed, left = "killed by signal SIGKILL", "exit status 3"
    assert sorted(line for line in said if "died" in line) == sorted(
        f"eval: a worker died ({how}); {what} begins again, try {again} of 3"
        for how, what, again in (
            (killed, f"task 'rough-red', seed {first + 1}", 2),
            (left, f"task 'rough-red', seed {first + 1}", 3),
            (killed, f"task 'rough-red', seed {first + 1}", 2),  # of the second call
            (left, f"film of task 'rough-red', seed {first}", 2),
        )
    )
    assert outcomes(tmp_path / "b" / "eval") == outcomes(tmp_path / "a" / "eval")
    assert len({video for *_, video, _, _ in outcomes(tmp_path / "b" / "eval").values() if video}) == 3
    assert result["tasks"] == undisturbed["tasks"]
    after = {key: row | {"video": None} for key, row in read_episodes(tmp_path / "b" / "eval").items()}
    assert kept.items() <= after.items()


def test_an_address_of_another_kind_is_no_run() -> None:
    with pytest.raises(ConfigError, match="not the address of a websocket"):
        eval_command.run(["http://127.0.0.1:8000", "point"])


def test_without_workers_nothing_needs_a_main_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConfigError("a guard is needed")

    monkeypatch.setattr(module, "require_main_guard", refuse)
    with pytest.raises(CheckpointError):  # there is no run; that much further it went
        evaluate(tmp_path, EvalConfig(trials=1, replan=1, workers=0))
    with pytest.raises(ConfigError, match="guard"):
        evaluate(tmp_path, EvalConfig(trials=1, replan=1, workers=2))
