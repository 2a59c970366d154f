"""Several sources in a recipe: what is drawn of each, what it teaches, and a run that resumes to the same bits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import bits

from lightwam.config.schema import HeldOutConfig, Recipe, SourceConfig
from lightwam.data.cache.joined import JoinedCache
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.video import encode_video
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.data.ranges import RobotRanges
from lightwam.errors import CheckpointError, ConfigError, DatasetError
from lightwam.evaluation.open_loop import evaluate_open_loop
from lightwam.evaluation.recorded import recorded_episodes
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.training.caches import DatasetSource
from lightwam.training.dataset import open_training_data
from lightwam.training.precompute import make_cache
from lightwam.training.train import train


def quiet(line: str) -> None:
    """What is said is not of interest."""


def write(root: Path, fps: int, camera: str = "top", dims: int = 2, task: str = "look around") -> Path:
    """Three episodes of 9 frames; the level of a picture is 20 times its frame, the action its frame."""
    names = [f"m{i}" for i in range(dims)]
    with LeRobotWriter(root, fps, "arm", {camera: (16, 16)}, names, names) as out:
        for episode in range(3):
            clip = np.repeat((20 * np.arange(9)).astype(np.uint8), 16 * 16 * 3).reshape(9, 16, 16, 3)
            vectors = np.repeat(np.arange(9, dtype=np.float32)[:, None], dims, axis=1) / 10
            out.add_episode({camera: clip}, vectors + episode, vectors, task)
    return root


def edit_table(root: Path, change: Any) -> None:
    (path,) = (root / "data").rglob("*.parquet")
    pq.write_table(change(pq.read_table(path)), path)


def without_vectors(root: Path) -> Path:
    """Take state and action out of a dataset: pictures and sentences are left."""
    info = json.loads((root / "meta" / "info.json").read_text())
    for name in ("observation.state", "action"):
        del info["features"][name]
    (root / "meta" / "info.json").write_text(json.dumps(info))
    edit_table(root, lambda table: table.drop_columns(["observation.state", "action"]))
    return root


def mark(root: Path, column: str = "intervention") -> Path:
    """Mark frames 3 to 5 of every episode as corrections."""

    def marked(table: pa.Table) -> pa.Table:
        frame = table["frame_index"].to_numpy()
        return table.append_column(column, pa.array((frame >= 3) & (frame < 6)))

    edit_table(root, marked)
    return root


@pytest.fixture
def mixed(tiny: Any, tmp_path: Path) -> Recipe:
    """Demonstrations, pictures without actions at twice their rate, and corrections."""
    fps = int(LeRobotDataset(tiny.dataset).fps)
    footage = without_vectors(write(tmp_path / "footage", 2 * fps, camera="video"))
    corrected = mark(write(tmp_path / "corrected", fps, task="corrected"))
    sources = (
        SourceConfig(str(tiny.dataset), weight=2.0),
        SourceConfig(str(footage), cameras=("video=top",), actions="none"),
        SourceConfig(str(corrected), actions="corrections", video=False),
    )
    return replace(tiny.recipe, sources=sources, held_out=HeldOutConfig(0.34))


def source(recipe: Recipe, number: int, **changes: Any) -> Recipe:
    sources = list(recipe.sources)
    sources[number] = replace(sources[number], **changes)
    return replace(recipe, sources=tuple(sources))


def only(recipe: Recipe, dataset: Path, **settings: Any) -> Recipe:
    return replace(recipe, sources=(SourceConfig(str(dataset), **settings),))


def test_a_mixed_run_resumes_to_the_same_bits(mixed: Recipe, tmp_path: Path) -> None:
    recipe = replace(mixed, train=replace(mixed.train, steps=4, batch_size=8))
    train(recipe, None, tmp_path / "whole", say=quiet)
    train(recipe, None, tmp_path / "parts", stop_after=2, say=quiet)
    train(recipe, None, tmp_path / "parts", say=quiet)
    whole, parts = bits(tmp_path / "whole"), bits(tmp_path / "parts")
    assert whole.keys() == parts.keys() and [name for name in whole if whole[name] != parts[name]] == []
    record = run_directory.read_json(tmp_path / "whole" / "dataset.json")
    assert [Path(each["path"]).name for each in record["others"]] == ["footage", "corrected"]
    facts = run_directory.read_facts(tmp_path / "whole")
    assert facts is not None and list(facts.cameras) == ["top"] and facts.sentences["corrected"] == 3
    recorded = recorded_episodes(Policy.load(tmp_path / "whole"))
    assert recorded.held_out and {each.dataset.root.name for each in recorded.episodes} == {"dataset"}


def test_another_weight_or_a_changed_dataset_is_another_run(mixed: Recipe, tmp_path: Path) -> None:
    train(mixed, None, tmp_path / "mine", stop_after=2, say=quiet)
    with pytest.raises(CheckpointError, match=r"sources(.|\n)*weight"):
        train(source(mixed, 1, weight=3.0), None, tmp_path / "mine", say=quiet)
    edit_table(tmp_path / "corrected", lambda table: table.slice(0))
    mark(tmp_path / "corrected", "another column")
    with pytest.raises(CheckpointError, match=r"another dataset(.|\n)*corrected"):
        train(mixed, None, tmp_path / "mine", say=quiet)


def test_what_the_mixed_sources_teach(mixed: Recipe, tiny: Any, tmp_path: Path) -> None:
    cache, encoder = open_training_data(mixed, None, tmp_path / "mine", quiet)
    assert isinstance(cache, JoinedCache)
    demos, footage, corrected = cache.sampling.parts
    assert [part.weight for part in cache.sampling.parts] == [2.0, 1.0, 1.0]
    # a third of the demonstrations is held out, of the footage nothing; it has half as many steps at the common rate
    data = LeRobotDataset(tiny.dataset)
    assert len(demos.windows) < data.num_frames and len(footage.windows) == 3 * 5
    assert cache.fps == data.fps and cache.tasks[-2:] == ("look around", "corrected")
    pictures = cache.video(footage.windows[:5, None])
    assert np.abs(pictures[:, 0].mean(axis=(1, 2, 3)) - 40 * np.arange(5)).max() < 3
    taught = cache.sampling.teaches_action
    first = demos.windows[0] + data.num_frames
    assert taught[: data.num_frames].all() and not taught[first : first + 15].any()
    assert not cache.sampling.has_state[footage.windows].any() and not cache.state[footage.windows].any()
    # corrections: windows whose chunk has a marked step, of an episode that is not held out
    start, prefix = cache.episode_start[-4:], mixed.model.supervised_prefix
    assert taught[start[0] :].tolist() == [3 <= frame < 6 for _ in range(3) for frame in range(9)]
    expected = [start[i] + frame for i in range(3) for frame in range(9) if frame < 6 and frame + prefix > 3]
    assert corrected.windows.tolist() == expected
    assert not cache.sampling.teaches_video[corrected.windows].any()
    # statistics: none of the footage, of both others
    assert encoder.codec.action.max.max() == pytest.approx(max(0.8, data.stats["action"].max.max()))


def test_a_folder_of_videos_is_a_source_without_actions(mixed: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    encode_video(folder / "a.mp4", np.full((30, 16, 16, 3), 99, np.uint8), 30)
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "task": "watch"}\n')
    recipe = source(mixed, 1, path=str(folder), cameras=("video=top",))
    train(recipe, None, tmp_path / "mine", stop_after=1, say=quiet)
    train(recipe, None, tmp_path / "mine", stop_after=2, say=quiet)
    assert run_directory.steps(tmp_path / "mine")[-1] == 2
    with pytest.raises(DatasetError, match="no actions"):
        train(source(recipe, 1, actions="all"), None, tmp_path / "other", say=quiet)


def test_one_source_is_the_dataset(tiny: Any, tmp_path: Path) -> None:
    train(only(tiny.recipe, tiny.dataset), None, tmp_path / "mine", say=quiet)
    assert bits(tmp_path / "mine") == bits(tiny.run)


def test_held_out_episodes_are_in_no_window_and_in_no_statistic(tiny: Any, tmp_path: Path) -> None:
    recipe = only(tiny.recipe, tiny.dataset, held_out=(0, 2))
    cache, encoder = open_training_data(recipe, None, tmp_path / "mine", quiet)
    data = LeRobotDataset(tiny.dataset)
    (part,), start = cache.sampling.parts, data.episode_start
    held = {*range(*start[0:2]), *range(*start[2:4])}
    assert set(part.windows.tolist()) == set(range(data.num_frames)) - held
    assert encoder.codec.state.count == data.num_frames - len(held)
    assert (data.vectors.action[part.windows].max(axis=0) == encoder.codec.action.max).all()
    other, _ = open_training_data(
        replace(tiny.recipe, held_out=HeldOutConfig(0.5)), tiny.dataset, tmp_path / "b", quiet
    )
    assert 0 < other.sampling.num_windows < data.num_frames


def test_statistics_by_step_are_of_every_source_that_has_the_step(tiny: Any, tmp_path: Path) -> None:
    """Relative actions: a source of episodes of 3 frames has no fourth step; it must not shorten the others'."""
    long, short = write(tmp_path / "long", 10), tmp_path / "short"
    with LeRobotWriter(short, 10, "arm", {"top": (16, 16)}, ["m0", "m1"], ["m0", "m1"]) as out:
        for episode in range(3):
            vectors = np.full((3, 2), episode, np.float32)
            out.add_episode({"top": np.zeros((3, 16, 16, 3), np.uint8)}, vectors, vectors, "stay")
    codec = replace(tiny.recipe.codec, relative_action_dims=(0, 1), delta_action_dims=())
    recipe = replace(tiny.recipe, codec=codec, sources=(SourceConfig(str(long)), SourceConfig(str(short))))
    _, encoder = open_training_data(recipe, None, tmp_path / "mine", quiet)
    _, alone = open_training_data(only(recipe, long), None, tmp_path / "alone", quiet)
    assert len(encoder.codec.relative) == len(alone.codec.relative) > 3
    assert encoder.codec.relative[3:] == alone.codec.relative[3:]
    assert encoder.codec.relative[2].count == alone.codec.relative[2].count + 3


def test_the_limits_of_motions_are_those_at_the_common_rate(tiny: Any, tmp_path: Path) -> None:
    fps = int(LeRobotDataset(tiny.dataset).fps)
    slow = write(tmp_path / "slow", 2 * fps)
    edit_table(slow, lambda table: table.set_column(
        table.schema.get_field_index("action"), table.schema.field("action"),
        pa.array([[40.0, 40.0]] * table.num_rows, table.schema.field("action").type)))  # fmt: skip
    recipe = replace(tiny.recipe, sources=(SourceConfig(str(tiny.dataset)), SourceConfig(str(slow))))
    assert recipe.codec.delta_action_dims == (0, 1)
    cache, _ = open_training_data(recipe, None, tmp_path / "mine", quiet)
    facts = run_directory.read_facts(tmp_path / "mine")
    assert facts is not None and facts.ranges is not None and facts.ranges.action_high == (80.0, 80.0)
    assert cache.action.max() == 80


def test_tasks_and_episodes_are_selected(tiny: Any, tmp_path: Path) -> None:
    data = LeRobotDataset(tiny.dataset)
    recipe = only(tiny.recipe, tiny.dataset, tasks=(data.tasks[1],), episodes=tuple(range(data.num_episodes - 1)))
    cache, _ = open_training_data(recipe, None, tmp_path / "mine", quiet)
    found = np.searchsorted(data.episode_start, cache.sampling.parts[0].windows, side="right") - 1
    assert set(cache.task_index[cache.sampling.parts[0].windows]) == {1} and data.num_episodes - 1 not in found
    facts = run_directory.read_facts(tmp_path / "mine")
    assert facts is not None and facts.sentences == {data.tasks[1]: len(set(found.tolist()))}
    assert facts.num_episodes == len(set(found.tolist())) and facts.num_frames == len(found)
    assert facts.ranges == RobotRanges.of(data, set(found.tolist()))
    for wrong, words in (({"episodes": (99,)}, "99"), ({"tasks": ("fly",)}, "fly"), ({"held_out": (98,)}, "98")):
        with pytest.raises(ConfigError, match=words):
            open_training_data(only(tiny.recipe, tiny.dataset, **wrong), None, tmp_path / "new", quiet)
    with pytest.raises(DatasetError, match="something to train on"):
        all_of = tuple(range(data.num_episodes))
        open_training_data(only(tiny.recipe, tiny.dataset, held_out=all_of), None, tmp_path / "new", quiet)
    assert not (tmp_path / "new").exists()


def test_sentences_of_episodes_that_are_left_out_need_not_fit(tiny: Any, tmp_path: Path) -> None:
    """Leaving out an episode is how to train on a dataset of which one has no sentence."""
    root, names = tmp_path / "set", ["m0", "m1"]
    with LeRobotWriter(root, 10, "arm", {"top": (16, 16)}, names, names) as out:
        for task in ("look around", "word " * 99, "look around"):
            vectors = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
            out.add_episode({"top": np.zeros((9, 16, 16, 3), np.uint8)}, vectors, vectors, task)
    with pytest.raises(DatasetError, match="must fit the text encoder"):
        train(only(tiny.recipe, root), None, tmp_path / "all", stop_after=1, say=quiet)
    for number, settings in enumerate(({"tasks": ("look around",)}, {"episodes": (0, 2)})):
        train(only(tiny.recipe, root, **settings), None, tmp_path / str(number), stop_after=1, say=quiet)


def test_cameras_are_mapped_or_black_if_that_is_said(tiny: Any, tmp_path: Path) -> None:
    (place,) = tiny.recipe.codec.places
    two = (
        replace(place, height=place.height // 2),
        replace(place, camera="wrist", top=place.height // 2, height=place.height // 2),
    )
    recipe = replace(tiny.recipe, codec=replace(tiny.recipe.codec, places=two))
    with pytest.raises(DatasetError, match=r'lacks a camera(.|\n)*next: cameras = \["=wrist"\] in its \[\[sources'):
        open_training_data(only(recipe, tiny.dataset), None, tmp_path / "mine", quiet)
    left = write(tmp_path / "left", 10, camera="left")
    for pairs, line in (((), '["left=top", "=wrist"]'), (("up=top", "=wrist"), '["=wrist", "left=top"]')):
        with pytest.raises(DatasetError, match="lacks a camera") as caught:
            open_training_data(only(recipe, left, cameras=pairs), None, tmp_path / "new", quiet)
        assert caught.value.next_step.startswith(f"cameras = {line} in its [[sources]]")
    open_training_data(only(recipe, left, cameras=("left=top", "=wrist")), None, tmp_path / "left run", quiet)
    cache, _ = open_training_data(only(recipe, tiny.dataset, cameras=("=wrist",)), None, tmp_path / "mine", quiet)
    picture = cache.video(np.array([[0]]))[0, 0]
    assert picture[: place.height // 2].any() and not picture[place.height // 2 :].any()
    for pairs in (("top=wrist",), ("top",), ("top=left",), ("=top", "=wrist"), ("a=wrist", "b=wrist")):
        with pytest.raises(ConfigError, match="a source"):
            open_training_data(only(recipe, tiny.dataset, cameras=pairs), None, tmp_path / "new", quiet)


def test_widths_are_checked_before_anything_is_decoded(mixed: Recipe, tmp_path: Path, cache_folder: Path) -> None:
    wide = write(tmp_path / "wide", 10, dims=3)
    with pytest.raises(DatasetError, match=r"widths(.|\n)*wide"):
        train(source(mixed, 2, path=str(wide)), None, tmp_path / "mine", say=quiet)
    unmarked = write(tmp_path / "unmarked", 10)
    with pytest.raises(DatasetError, match=r"a column is missing(.|\n)*intervention"):
        train(source(mixed, 2, path=str(unmarked)), None, tmp_path / "mine", say=quiet)
    never = mark(write(tmp_path / "never", 10), "other")
    edit_table(never, lambda table: table.append_column("intervention", pa.array([False] * table.num_rows)))
    with pytest.raises(DatasetError, match=r"something to train on(.|\n)*no step with a correction"):
        train(source(mixed, 2, path=str(never)), None, tmp_path / "mine", say=quiet)
    assert not cache_folder.exists() and not (tmp_path / "mine").exists()


def test_open_loop_compares_with_what_the_sources_teach(tiny: Any, tmp_path: Path) -> None:
    """A source of another rate is left out, and said to be; of corrections only the marked steps count."""
    fps = int(LeRobotDataset(tiny.dataset).fps)
    corrected = mark(write(tmp_path / "corrected", fps, task="corrected"))
    sources = (
        SourceConfig(str(corrected), actions="corrections", held_out=(1,)),
        SourceConfig(str(write(tmp_path / "faster", 2 * fps)), held_out=(0,)),
    )
    recipe, run = replace(tiny.recipe, sources=sources), tmp_path / "mine"
    train(recipe, None, run, stop_after=2, say=quiet)
    said: list[str] = []
    policy = Policy.load(run)
    recorded = recorded_episodes(policy, say=said.append)
    assert [each.dataset.root.name for each in recorded.episodes] == ["corrected"]
    assert said == [f"{tmp_path / 'faster'}: left out of the open loop: {2 * fps} fps, the policy has {fps}"]
    assert recorded.sentences == ("corrected",) and np.flatnonzero(recorded.taught).tolist() == [3, 4, 5]
    result = evaluate_open_loop(run, policy=policy, say=quiet)
    assert result["windows"] == 3 and result["counts"][:4] == [3, 2, 1, 0]


def test_corrections_of_lerobots_column_are_read(tmp_path: Path) -> None:
    root = mark(write(tmp_path / "set", 10), "complementary_info.is_intervention")
    flags = LeRobotDataset(root).flag(["intervention", "complementary_info.is_intervention"])
    assert flags.tolist() == [3 <= frame < 6 for _ in range(3) for frame in range(9)]
    with pytest.raises(DatasetError, match="true or false"):
        LeRobotDataset(root).flag(["timestamp"])


def test_a_dataset_replaces_one_source_only(mixed: Recipe, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="single source"):
        train(mixed, tiny.dataset, tmp_path / "mine", say=quiet)
    moved = only(tiny.recipe, tmp_path / "not there")
    assert DatasetSource.of(tiny.dataset, moved).folder == tiny.dataset
    with pytest.raises(ConfigError, match="dataset must be given"):
        train(tiny.recipe, None, tmp_path / "mine", say=quiet)


def test_every_source_is_cached_once_for_all_recipes(mixed: Recipe, tmp_path: Path, cache_folder: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match="batch-size must be >= 1"):
        make_cache(mixed, None, batch_size=0)
    make_cache(mixed, None, say=said.append)
    assert len(list(cache_folder.glob("*.lightwam/cache/*/frames.npy"))) == 2  # the third is in the tiny dataset
    train(source(mixed, 1, weight=3.0), None, tmp_path / "mine", stop_after=1, say=said.append)
    assert len([line for line in said if "decode" in line]) == 2
