"""policy.py, playback.py: from what a robot sees to what it does, one way for one and many; wrong input is refused."""

import doctest
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_here import InHere

import lightwam.policy.policy
from lightwam.data.codec import Codec
from lightwam.data.statistics import measure
from lightwam.encoders import frozen
from lightwam.encoders.frozen import Prompts
from lightwam.encoders.hashed_text import HashedText
from lightwam.errors import CheckpointError, ConfigError, LightwamError, WireError
from lightwam.policy import run_directory
from lightwam.policy.episode import Episode
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.types import Observation


@pytest.fixture(scope="module")
def trained(tiny_once: Any) -> Policy:
    return Policy.load(tiny_once.run)


@pytest.fixture(scope="module")
def seen(tiny_once: Any) -> list[Observation]:
    """Three moments, of both tasks."""
    moments = []
    for seed, task in enumerate(("red", "blue", "red")):
        simulator = registry.make_simulator(tiny_once.recipe.sim, task)
        simulator.reset(seed)
        moments.append(simulator.observe())
    return moments


def test_a_chunk_in_robot_units(trained: Policy, seen: list[Observation]) -> None:
    chunk = trained.act(seen[0])
    assert chunk.shape == (8, 2)
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()
    assert np.array_equal(chunk, trained.act(seen[0]))  # no state, no randomness


def test_batch_equals_single_observations(trained: Policy, seen: list[Observation]) -> None:
    together = trained.act_batch(seen)
    alone = np.stack([trained.act(observation) for observation in seen])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(alone[0] - alone[2]).max() > 1e-4  # they do differ


@pytest.mark.parametrize("part", ["frames", "state", "instruction"])
def test_action_depends_on_every_field(trained: Policy, seen: list[Observation], part: str) -> None:
    other: dict[str, Any] = {
        "frames": seen[1].frames,
        "state": -seen[0].state,
        "instruction": seen[1].instruction,
    }
    assert not np.array_equal(trained.act(seen[0]), trained.act(replace(seen[0], **{part: other[part]})))


def test_relative_actions_are_decoded_from_the_state_of_each_observation(
    tiny_once: Any, seen: list[Observation]
) -> None:
    policy = Policy.load(tiny_once.run)
    config = replace(policy.codec.config, delta_action_dims=(), relative_action_dims=(1,))
    plain = policy.act_batch(seen)
    policy.codec = Codec(config, policy.codec.state, policy.codec.action, [measure(np.float32([[-1], [2]]))])
    relative, states = policy.act_batch(seen), np.stack([observation.state for observation in seen])
    np.testing.assert_array_equal(relative[..., 0], plain[..., 0])
    normalised = policy.codec.encode_action(relative, states)
    np.testing.assert_allclose(relative[..., 1], normalised[..., 1] * 1.5 + 0.5 + states[:, None, 1], atol=1e-5)


def picture(**kind: Any) -> dict[str, Any]:
    return {"top": np.zeros(**{"shape": (32, 32, 3), "dtype": np.uint8, **kind})}


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"frames": {}}, "top"),
    ({"frames": {"front": np.zeros((32, 32, 3), np.uint8)}}, "top"),
    ({"frames": picture(dtype=np.float32)}, "float32"),
    ({"frames": picture(shape=(32, 32))}, "(32, 32)"),
    ({"frames": picture(shape=(3, 32, 32))}, "(3, 32, 32)"),
    ({"frames": picture(shape=(0, 32, 3))}, "(0, 32, 3)"),
    ({"state": np.zeros(3, np.float32)}, "(3,)"),
    ({"state": np.zeros((1, 2), np.float32)}, "(1, 2)"),
    ({"state": np.array([0, np.nan], np.float32)}, "nan"),
    ({"state": np.array([np.inf, 0], np.float32)}, "inf"),
    ({"instruction": "one two three four five six seven eight nine"}, "9 words"),
    ({"instruction": ""}, "0 words"),
]


def unchecked(observation: Observation, changes: Mapping[str, Any]) -> Observation:
    """As it would come over a wire: nobody has looked at its types."""
    changed = object.__new__(Observation)
    for name in ("frames", "state", "instruction"):
        object.__setattr__(changed, name, changes.get(name, getattr(observation, name)))
    return changed


@pytest.mark.parametrize(("changes", "told"), WRONG, ids=[told for _, told in WRONG])
def test_a_wrong_observation_is_refused(
    trained: Policy, seen: list[Observation], changes: Mapping[str, Any], told: str
) -> None:
    with pytest.raises((WireError, ConfigError)) as caught:
        trained.act_batch([seen[1], unchecked(seen[0], changes)])
    assert isinstance(caught.value, LightwamError)
    assert told in str(caught.value)
    trained.act(seen[0])  # and nothing is left behind


PLAIN_WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"state": ["a", "b"]}, "a list of numbers"),
    ({"state": {"x": 1.0}}, "a list of numbers"),
    ({"state": [[0.1], [0.2, 0.3]]}, "a list of numbers"),
    ({"state": [1e300, 0.0]}, "inf"),
    ({"state": None}, "observation.state"),
    ({"state": [0.0] * 1000}, "(1000,)"),
    ({"frames": [np.zeros((32, 32, 3), np.uint8)]}, "Mapping"),
    ({"frames": {"top": [[[0, 0, 0]]]}}, "uint8"),
    ({"instruction": 5}, "int"),
    ({"instruction": b"move"}, "bytes"),
    ({"prompt": "move"}, "'prompt'"),
]


def plain(observation: Observation) -> dict[str, Any]:
    return {
        "frames": dict(observation.frames),
        "state": [float(number) for number in observation.state],
        "instruction": observation.instruction,
    }


def test_the_states_are_read_once_a_call(
    trained: Policy, seen: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, read = [], lightwam.policy.policy.read_states
    monkeypatch.setattr(lightwam.policy.policy, "read_states", lambda *words: (calls.append(1), read(*words))[1])
    trained.act_batch(seen)
    assert len(calls) == 1


def test_mapping_of_plain_values_is_an_observation(trained: Policy, seen: list[Observation]) -> None:
    assert np.array_equal(trained.act(plain(seen[0])), trained.act(seen[0]))
    assert np.array_equal(trained.act_batch([seen[1], plain(seen[0])]), trained.act_batch([seen[1], seen[0]]))
    assert np.array_equal(trained.imagine(plain(seen[0]), 1, 2), trained.imagine(seen[0], 1, 2))
    assert np.array_equal(trained.attention(plain(seen[0]))[0], trained.attention(seen[0])[0])


@pytest.mark.parametrize(("changes", "told"), PLAIN_WRONG, ids=[told for _, told in PLAIN_WRONG])
def test_wrong_plain_values_are_refused(
    trained: Policy, seen: list[Observation], changes: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(WireError, match=re.escape(told)):
        trained.act(plain(seen[0]) | changes)


def test_missing_field_is_refused(trained: Policy, seen: list[Observation]) -> None:
    with pytest.raises(WireError, match=r"exactly the fields(.|\n)*got: \['frames', 'state'\]"):
        trained.act({name: value for name, value in plain(seen[0]).items() if name != "instruction"})


def test_picture_of_another_size_is_resized(trained: Policy, seen: list[Observation]) -> None:
    frames = {"top": seen[0].frames["top"].repeat(2, 0).repeat(2, 1)}
    np.testing.assert_allclose(trained.act(replace(seen[0], frames=frames)), trained.act(seen[0]), atol=0.05)


def test_imagine(trained: Policy, seen: list[Observation]) -> None:
    video = trained.imagine(seen[0], seed=4, num_steps=2)
    assert video.shape == (5, 32, 32, 3)  # 1 + horizon 8 / stride 2
    assert video.dtype == np.uint8
    assert np.array_equal(video, trained.imagine(seen[0], seed=4, num_steps=2))
    assert not np.array_equal(video, trained.imagine(seen[0], seed=5, num_steps=2))
    assert np.array_equal(video[0], trained.codec.canvas(seen[0].frames))  # the present


def test_each_further_chunk_begins_at_the_last_imagined_picture(trained: Policy, seen: list[Observation]) -> None:
    one, three = (trained.imagine(seen[0], seed=4, num_steps=2, num_chunks=count) for count in (1, 3))
    assert three.shape == (13, *one.shape[1:])
    assert np.array_equal(three[:5], one)
    again = replace(seen[0], frames={"top": one[-1]})
    assert np.array_equal(three[5:9], trained.imagine(again, seed=5, num_steps=2)[1:])
    assert not np.array_equal(three[5:9], three[9:])


def test_attention(trained: Policy, seen: list[Observation]) -> None:
    maps = trained.attention(seen[0])
    assert len(maps) == 2  # taps
    for attention in maps:
        assert attention.shape == (4, 2, 2)  # queries, 32 pixels / 8 / patch 2
        assert (attention >= 0).all()
        np.testing.assert_allclose(attention.sum((1, 2)), 1, atol=1e-5)


def test_prompts_are_encoded_once_while_they_are_cached(tiny_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, encoded = tiny_once.recipe, []

    class Counting(HashedText):
        def encode(self, instructions: Sequence[str]) -> torch.Tensor:
            encoded.extend(instructions)
            return super().encode(instructions)

    monkeypatch.setattr(frozen, "open_text", lambda recipe, device: Counting(recipe.text))
    monkeypatch.setattr(frozen, "MAX_PROMPTS", 2)
    prompts = Prompts(recipe, {"known": torch.ones(recipe.text.num_tokens, recipe.text.dim)})
    first = prompts.states(["a", "b", "a", "known"])
    assert encoded == ["a", "b"] and (first[3] == 1).all()
    prompts.states(["c"])
    assert torch.equal(prompts.states(["a"])[0], first[0])
    assert encoded == ["a", "b", "c"]
    assert torch.equal(prompts.states(["b"])[0], first[1])  # was evicted: the least recently used of the two
    assert encoded == ["a", "b", "c", "b"]


def test_ema_weights_act_by_default(tiny_once: Any) -> None:
    saved = run_directory.load(tiny_once.run)
    assert saved.ema is not None
    for weights, chosen in ((saved.ema, {}), (saved.model, {"ema": False})):
        ours = Policy.load(tiny_once.run, **chosen).model.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in weights.items())
    assert any(not torch.equal(saved.ema[name], saved.model[name]) for name in saved.model)


def test_an_older_step_can_be_loaded(tiny_once: Any, trained: Policy) -> None:
    assert trained.step == 6
    assert Policy.load(tiny_once.run, 4).step == 4
    with pytest.raises(CheckpointError, match=r"\[4, 6\]"):
        Policy.load(tiny_once.run, 5)


def test_missing_or_incomplete_run_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        Policy.load(tmp_path / "nothing")
    shutil.rmtree(tiny.run / "checkpoints")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Policy.load(tiny.run)


# --- one action at a time


def test_an_episode_plays_chunks(trained: Policy, seen: list[Observation]) -> None:
    episode = trained.begin(replan=3)
    first, second = trained.act(seen[0]), trained.act(seen[1])
    played = [episode.action(seen[0]) for _ in range(3)]
    assert np.array_equal(played, first[:3]) and episode.num_left == 0
    assert np.array_equal(episode.action(seen[1]), second[0]) and episode.num_left == 2
    assert np.array_equal(episode.action(seen[0]), second[1])  # not read: an action is left
    episode.reset()
    assert np.array_equal(episode.action(seen[0]), first[0])


def test_episodes_of_one_policy_are_independent(trained: Policy, seen: list[Observation]) -> None:
    one, other = trained.begin(), trained.begin()
    assert one.replan == trained.recipe.eval.replan == 4
    for number in range(6):
        chunks = trained.act(seen[0]), trained.act(seen[1])
        assert np.array_equal(one.action(seen[0]), chunks[0][number % 4])
        assert np.array_equal(other.action(seen[1]), chunks[1][number % 4])


def test_error_leaves_an_episode_unchanged(trained: Policy, seen: list[Observation]) -> None:
    episode = trained.begin(replan=1)
    episode.action(seen[0])
    with pytest.raises(WireError):
        episode.action(unchecked(seen[0], {"frames": {}}))
    assert np.array_equal(episode.action(seen[1]), trained.act(seen[1])[0])


@pytest.mark.parametrize("replan", [0, -1, 9])
def test_replan_beyond_the_supervised_prefix_is_refused(trained: Policy, replan: int) -> None:
    with pytest.raises(ConfigError, match="1 to 8"):
        trained.begin(replan)


def test_replan_of_zero_is_refused(trained: Policy) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        Episode(trained.act, 0)


# --- the front door


@pytest.fixture
def point_run(tiny_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory holds runs/point, as the documents have it."""
    shutil.copytree(tiny_once.run, tmp_path / "runs" / "point")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "point"


def test_docstring_example(point_run: Path) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(Policy, "Policy", lightwam.policy.policy, globs={})
    assert len(example.examples) > 8
    told: list[str] = []
    result = doctest.DocTestRunner().run(example, out=told.append)
    assert result.failed == 0, "".join(told)


def test_documented_code_runs(point_run: Path, fake_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightwam.system.workers.Workers", InHere)
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 5
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["result"]["trials"] == 4
    assert names["policy"].cameras == ("top",) and names["policy"].recipe.model.state_dim == 2
    assert names["chunk"].shape == (8, 2) and names["chunk"].dtype == np.float32
    assert names["action"].shape == (2,) and names["action"].dtype == np.float32
    assert names["episode"].replan == 4 and names["episode"].num_left == 0
    assert names["video"].shape == (5, 32, 32, 3) and names["video"].dtype == np.uint8
    assert names["address"].endswith("someone/lightwam-point")
    assert names["card"] == (fake_hub.repo("someone/lightwam-point") / "README.md").read_text()


def test_readme_example_runs(point_run: Path) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block.replace("runs/demo", "runs/point").replace('"reach"', '"red"'), "README.md", "exec"), names)
    assert names["chunk"].shape == (8, 2) and names["video"].dtype == np.uint8


@pytest.mark.parametrize("far", [3e38, -1e20])
@pytest.mark.parametrize("engine", [False, True])
def test_a_state_that_would_make_the_model_infinite_is_refused(
    tiny_once: Any, seen: list[Observation], far: float, engine: bool
) -> None:
    """It is finite, and whose fault it is could not be told from the answer, which would not be."""
    policy = Policy.load(tiny_once.run, engine=engine)
    state = seen[0].state.copy()
    state[1] = far
    with pytest.raises(WireError, match="far outside") as caught:
        policy.act(replace(seen[0], state=state))
    assert "dims [1]" in str(caught.value)
