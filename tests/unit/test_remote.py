"""remote.py: a served policy is evaluated to the same episodes as in this process, and what goes wrong is told."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_here import InHere
from serving import serving, stop

from lightwam.cli.main import main
from lightwam.config import recipes
from lightwam.config.schema import EvalConfig
from lightwam.errors import CheckpointError, ConfigError, WireError
from lightwam.evaluation.episodes import read_episodes
from lightwam.evaluation.evaluate import evaluate
from lightwam.evaluation.remote_policy import RemotePolicy
from lightwam.policy.policy import Policy
from lightwam.robot.client import Client
from lightwam.robot.errors import ConnectionLost
from lightwam.types import Observation
from lightwam.wire import robot_schemas
from lightwam.wire.robot_schema import ActionPart, StatePart, Unit

PLAIN = robot_schemas.load_schema("light-wam")
PLAIN_MESSAGE = {"images": {"top": np.zeros((32, 32, 3), np.uint8)}, "state": np.zeros(2), "prompt": "go"}
SETTINGS = EvalConfig(trials=2, replan=4, workers=1, videos_per_task=0)


@pytest.fixture(autouse=True)
def in_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightwam.system.workers.Workers", InHere)


@contextmanager
def remote(act: Any, schema: Any = PLAIN, keys: Sequence[str] = ()) -> Iterator[tuple[RemotePolicy, Any]]:
    """A policy behind a socket, and the server."""
    recipe = recipes.point()
    served = robot_schemas.schemas_for(("light-wam",), recipe.sim.cameras, 2, 2, {})
    with serving(act, keys, schemas_of=served) as server:
        url = f"ws://127.0.0.1:{server.ports['openpi']}"
        with Client(url, timeout_seconds=5.0, attempts=1) as client:
            yield RemotePolicy(client, recipe, schema), server


def quiet(line: str) -> None:
    """What is said is not of interest."""


def still(observations: Sequence[Observation]) -> np.ndarray:
    return np.zeros((len(observations), 5, 2), np.float32)


def act_of(run: Path) -> Any:
    """The run's policy in the server's thread: by one thread, as in `evaluate`, so to the same bits."""
    policy = Policy.load(run)

    def act(observations: Sequence[Observation]) -> np.ndarray:
        torch.set_num_threads(1)
        return policy.act_batch(observations)

    return act


def outcomes(place: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    return {
        (task, seed): (row["success"], row["steps"], np.load(place / "actions" / f"{task}-{seed}.npy").tobytes())
        for (task, seed), row in read_episodes(place).items()
    }


def test_the_wire_loses_nothing(tiny_once: Any, tmp_path: Path) -> None:
    policy = Policy.load(tiny_once.run)
    evaluate(tmp_path / "direct", SETTINGS, policy=policy, say=quiet)
    with remote(act_of(tiny_once.run)) as (served, _):
        result = evaluate(tmp_path / "served", SETTINGS, sim=policy.recipe.sim, policy=served, say=quiet)
    assert outcomes(tmp_path / "served" / "eval") == outcomes(tmp_path / "direct" / "eval")
    assert len(outcomes(tmp_path / "served" / "eval")) == result["trials"] == 2 * len(policy.recipe.sim.tasks)
    protocol = result["protocol"]
    assert (protocol["server"], protocol["family"]["name"]) == ({"recipe": "test"}, "light-wam")
    assert protocol.keys().isdisjoint({"recipe", "checkpoint_step"}), "those are a run's"


def test_a_server_gets_the_history_that_it_asks_for(tmp_path: Path) -> None:
    """Of several simulators at once, over one connection: by their episodes' numbers."""
    seen: list[Observation] = []

    def act(observations: Sequence[Observation]) -> np.ndarray:
        seen.extend(observations)
        return np.full((len(observations), 5, 2), 0.3, np.float32)

    recipe = recipes.point()
    sim = replace(recipe.sim, max_steps=8)
    served = robot_schemas.schemas_for(("light-wam",), sim.cameras, 2, 2, {}, n_obs_steps=2)
    with serving(act, schemas_of=served) as server, Client(f"ws://127.0.0.1:{server.ports['openpi']}") as client:
        policy = RemotePolicy(client, recipe, PLAIN)
        result = evaluate(tmp_path, replace(SETTINGS, replan=3), sim=sim, policy=policy, say=quiet)
        assert policy.n_obs_steps == result["protocol"]["server"]["n_obs_steps"] == 2
        assert "n_obs_steps" not in result["protocol"]["family"]
        with pytest.raises(WireError, match="'episode' is missing"):  # a robot that knows nothing of it is told
            client.act(PLAIN_MESSAGE)
    episodes = {one.episode for one in seen}
    assert len(episodes) == result["trials"]
    for number in episodes:
        asked = [one for one in seen if one.episode == number]
        assert [one.step for one in asked] == [0, 3, 6][: len(asked)]
        assert [[earlier.step for earlier in one.history] for one in asked] == [[0], [2], [5]][: len(asked)]
        for one in asked[1:]:
            assert not np.array_equal(one.history[0].state, one.state)


def test_a_greeting_that_asks_for_nonsense_is_refused() -> None:
    for steps in (-1, 65, 2.0, True, "2"):
        with pytest.raises(WireError, match="n_obs_steps of the server's greeting"):
            asked(Greeting(n_obs_steps=steps))
    assert asked(Greeting(n_obs_steps=1)).n_obs_steps == asked(Greeting()).n_obs_steps == 1


class Greeting(Client):
    """Of a server that says something of itself; there is no socket."""

    def __init__(self, **metadata: Any) -> None:
        super().__init__("ws://there:8000")
        self.said = metadata

    @property
    def metadata(self) -> dict[str, Any]:
        return self.said

    def act(self, message: Any) -> np.ndarray:
        return np.zeros((5, 2), np.float32)


def asked(client: Client, **changes: Any) -> RemotePolicy:
    policy = RemotePolicy(client, recipes.point(), replace(PLAIN, **changes), {"cam": "top"}, "mine")
    policy.check_evaluation(policy.recipe.sim, SETTINGS)
    return policy


SEEN = Observation({"top": np.zeros((32, 32, 3), np.uint8)}, np.array([0.1, 0.2], np.float32), "go")


def test_a_result_says_all_that_the_answers_depend_on() -> None:
    client = Greeting(model="a", pose=np.arange(2.0), step=np.int64(3))
    identity = asked(client, action_units=(Unit(1, -2.0, 1.0),)).identity()
    assert identity["server"] == {"model": "a", "pose": [0.0, 1.0], "step": 3} and identity["label"] == "mine"
    schema = identity["family"]
    assert schema["renames"] == {"cam": "top"} and schema["action_units"] == [{"dim": 1, "scale": -2.0, "offset": 1.0}]
    assert json.loads(json.dumps(identity)) == identity


def test_another_server_on_the_way_is_noticed() -> None:
    client = Greeting(model="a")
    policy = asked(client)
    assert policy.act_batch([SEEN]).shape == (1, 5, 2)
    client.said = {"model": "b"}
    with pytest.raises(WireError, match=r"another server[\s\S]*'b'[\s\S]*'a'"):
        policy.act_batch([SEEN])


def test_another_server_does_not_go_on_with_the_folder(tmp_path: Path) -> None:
    with remote(still) as (policy, _):
        evaluate(tmp_path, replace(SETTINGS, trials=1), policy=policy, say=quiet)
    client = Greeting(model="b")
    other = RemotePolicy(client, recipes.point(), PLAIN)
    with pytest.raises(CheckpointError, match=r"other settings[\s\S]*'server'"):
        evaluate(tmp_path, replace(SETTINGS, trials=1), policy=other, say=quiet)


def test_other_units_are_those_of_the_robot() -> None:
    """The server sees and says what a robot would that counts otherwise; the simulator gets its own units."""
    seen: list[np.ndarray] = []

    def act(observations: Sequence[Observation]) -> np.ndarray:
        seen.extend(one.state for one in observations)
        return np.tile(np.array([0.5, -1.0], np.float32), (len(observations), 4, 1))

    schema = replace(PLAIN, state_units=(Unit(0, 10.0, 3.0),), action_units=(Unit(1, -2.0, 1.0),))
    with remote(act, schema) as (policy, _):
        sim = replace(policy.recipe.sim, tasks=("red",), max_steps=4)
        policy.check_evaluation(sim, SETTINGS)
        (chunk,) = policy.act_batch([SEEN])
    np.testing.assert_allclose(seen, [[4.0, 0.2]])
    np.testing.assert_allclose(chunk, np.tile([0.5, 1.0], (4, 1)))


def test_a_chunk_too_short_is_refused(tmp_path: Path) -> None:
    with (
        remote(still) as (policy, _),
        pytest.raises(ConfigError, match=r"fit into a chunk[\s\S]*got: 6\s+expected: at most 5"),
    ):
        evaluate(tmp_path, replace(SETTINGS, replan=6), policy=policy, say=quiet)


def test_settings_are_checked_but_not_the_recipes_model(tmp_path: Path) -> None:
    with remote(still) as (policy, _):
        with pytest.raises(ConfigError, match="must be >= 1"):
            policy.check_evaluation(policy.recipe.sim, replace(SETTINGS, replan=0))
        policy.check_evaluation(policy.recipe.sim, replace(SETTINGS, replan=40))  # more than the recipe's model has


def test_a_family_of_other_robots_is_refused() -> None:
    with (
        remote(still, robot_schemas.load_schema("libero")) as (policy, _),
        pytest.raises(ConfigError, match="schema has no such camera"),
    ):
        policy.check_evaluation(policy.recipe.sim, SETTINGS)
    parts = replace(PLAIN, action=(ActionPart("arm", 2),))
    with pytest.raises(ConfigError, match=r"must not divide actions[\s\S]*'arm'"), remote(still, parts):
        pass
    open_parts = replace(PLAIN, state=(StatePart(("arm",)), StatePart(("hand",))))
    with pytest.raises(ConfigError, match="parts of a state but one must have a length"), remote(still, open_parts):
        pass


def test_answers_that_are_no_actions_are_refused() -> None:
    def many(observations: Sequence[Observation]) -> np.ndarray:
        return np.zeros((len(observations), 5, 3), np.float32)

    with remote(many) as (policy, _):
        policy.check_evaluation(policy.recipe.sim, SETTINGS)
        with pytest.raises(WireError, match=r"must be a chunk[\s\S]*\(5, 3\)[\s\S]*\(H, 2\)"):
            policy.act_batch([SEEN])


def test_a_lost_server_costs_the_episode_under_way_only(tiny_once: Any, tmp_path: Path) -> None:
    policy = Policy.load(tiny_once.run)
    evaluate(tmp_path / "whole", SETTINGS, policy=policy, say=quiet)
    lengths = [row["steps"] for row in read_episodes(tmp_path / "whole" / "eval").values()]
    asked, servers, act = 0, [], act_of(tiny_once.run)

    def dying(observations: Sequence[Observation]) -> np.ndarray:
        nonlocal asked
        asked += 1
        if asked == -(-lengths[0] // 4) + 2:  # in the second episode
            stop(servers[0])
        return act(observations)

    with remote(dying) as (served, server):
        servers.append(server)
        with pytest.raises(ConnectionLost):
            evaluate(tmp_path / "lost", SETTINGS, sim=policy.recipe.sim, policy=served, say=quiet)
    assert len(read_episodes(tmp_path / "lost" / "eval")) == 1
    with remote(act_of(tiny_once.run)) as (served, _):
        evaluate(tmp_path / "lost", SETTINGS, sim=policy.recipe.sim, policy=served, say=quiet)
    assert outcomes(tmp_path / "lost" / "eval") == outcomes(tmp_path / "whole" / "eval")


def test_the_command(tiny_once: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with remote(act_of(tiny_once.run)) as (_, server):
        url = f"ws://127.0.0.1:{server.ports['openpi']}"
        words = ["eval", url, "point", "--robot-schema", "light-wam", "--eval.trials", "1"]
        words += ["--eval.videos-per-task", "0"]
        assert main([*words, "--run", str(tmp_path / "a")]) == 0
        result = json.loads((tmp_path / "a" / "eval" / "result.json").read_text())
        assert f"all   {result['successes']} of {result['trials']}" in capsys.readouterr().out
        assert main([*words, "--run", str(tiny_once.run)]) == 2
        assert "must not be stored in a trained run" in capsys.readouterr().err
        assert main(words) == 2
        assert "--run runs/NAME" in capsys.readouterr().err
        assert main([*words, "--run", str(tmp_path / "b"), "--robot-schema", "libro"]) == 2
        assert "did you mean 'libero'" in capsys.readouterr().err


def test_the_command_has_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "a key of many signs".replace(" ", "-")
    with remote(still, keys=[key]) as (_, server):
        url = f"ws://127.0.0.1:{server.ports['openpi']}"
        words = ["eval", url, "point", "--robot-schema", "light-wam", "--eval.trials", "1", "--run", str(tmp_path)]
        words += ["--eval.videos-per-task", "0", "--sim.tasks", "red"]
        assert main(words) == 2
        assert "key" in capsys.readouterr().err
        monkeypatch.setenv("LIGHTWAM_API_KEY", "a key that has spaces")
        assert main(words) == 2
        told = capsys.readouterr().err
        assert "must be printable ASCII" in told and "that has" not in told
        monkeypatch.setenv("LIGHTWAM_API_KEY", f"{key}\n")
        assert main([*words, "--label", "somebody's"]) == 0
    assert json.loads((tmp_path / "eval" / "result.json").read_text())["protocol"]["label"] == "somebody's"
