"""Recorded episodes that a run can be measured on: those it held out of training, or all of another dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from lightwam.config.schema import Recipe
from lightwam.data.held_out import episode_sentences, held_out_episodes
from lightwam.data.lerobot.features import parse_names
from lightwam.data.lerobot.hub import find_dataset
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import CheckpointError, ConfigError, DatasetError
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.types import Observation

DECODED_TOGETHER = 16
"""pictures of a camera"""


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """An episode of a dataset, in robot units."""

    dataset: LeRobotDataset
    index: int
    """its number in the dataset"""
    instruction: str
    """of its first step"""
    cameras: Mapping[str, str] = field(default_factory=dict)
    """camera of the dataset -> the codec's name for it, if that is another one"""

    @property
    def rows(self) -> slice:
        """Its control steps among those of the dataset."""
        return slice(*self.dataset.episode_start[self.index : self.index + 2].tolist())

    @property
    def state(self) -> Float32[np.ndarray, "T P"]:
        """The robot's state at each step."""
        return self.dataset.vectors.state[self.rows].astype(np.float32)

    @property
    def action(self) -> Float32[np.ndarray, "T A"]:
        """The recorded action of each step."""
        return self.dataset.vectors.action[self.rows].astype(np.float32)

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def observations(self, cameras: Sequence[str]) -> Iterator[Observation]:
        """Yield what a policy would have seen at each step, in order; `cameras` are the codec's names."""
        names = {new: old for old, new in self.cameras.items()}
        tasks = self.dataset.vectors.frame_task[self.rows].tolist()
        with closing(self.dataset.decoder()) as decoder:
            episode = self.dataset.episodes[self.index]
            streams = [decoder.stream(episode, names.get(camera, camera), DECODED_TOGETHER) for camera in cameras]
            clips = ((picture for batch in stream for picture in batch) for stream in streams)
            for pictures, state, task in zip(zip(*clips, strict=True), self.state, tasks, strict=True):
                frames = dict(zip(cameras, pictures, strict=True))
                yield Observation(frames, state, self.dataset.tasks[task])


@dataclass(frozen=True, eq=False)
class Recorded:
    """Episodes to measure a policy on; their arrays one after the other."""

    episodes: tuple[RecordedEpisode, ...]
    held_out: bool
    """False: the run was trained on them"""
    sentences: tuple[str, ...]
    """the different instructions of the dataset"""

    @property
    def fps(self) -> float:
        """Control steps a second."""
        return self.episodes[0].dataset.fps

    @cached_property
    def episode_start(self) -> Int64[np.ndarray, " episodes_and_1"]:
        """First control step of each episode, and the number of steps at the end."""
        return np.cumsum([0, *map(len, self.episodes)])

    @cached_property
    def state(self) -> Float32[np.ndarray, "N P"]:
        """The states of all episodes."""
        return np.concatenate([episode.state for episode in self.episodes])

    @cached_property
    def action(self) -> Float32[np.ndarray, "N A"]:
        """The recorded actions of all episodes."""
        return np.concatenate([episode.action for episode in self.episodes])

    @property
    def num_steps(self) -> int:
        """Control steps of all episodes."""
        return int(self.episode_start[-1])


def recorded_episodes(policy: Policy, dataset: Path | str | None = None, most_steps: int = 3000) -> Recorded:
    """Return episodes to measure the policy on: whole ones, of all instructions in turn, up to `most_steps` (or one).

    Those that its run held out; without any, those it was trained on. All episodes of `dataset`, if that is given: the
    run must not have been trained on it. CheckpointError when the run does not say where its dataset is, DatasetError
    when it is missing, was changed or has other widths than the policy.
    """
    if dataset is not None:
        data = LeRobotDataset(find_dataset(dataset, policy.cameras))
        sentences = _sentences(data)
        chosen, held_out = [RecordedEpisode(data, number, sentences[number]) for number in sentences], True
    else:
        chosen, held_out = _own_episodes(policy)
    for data in dict.fromkeys(episode.dataset for episode in chosen):
        _check_widths(policy.recipe, data)
    instructions = sorted({sentence for each in chosen for sentence in _sentences(each.dataset).values()})
    return Recorded(tuple(_some(chosen, most_steps)), held_out, tuple(instructions))


@dataclass(frozen=True, eq=False)
class _Source:
    """A dataset that a run was trained on."""

    dataset: LeRobotDataset
    sentences: Mapping[int, str]
    """episode in use -> its instruction"""
    listed: tuple[int, ...] = ()
    """episodes to hold out, if they were chosen by hand"""
    cameras: Mapping[str, str] = field(default_factory=dict)


def _own_episodes(policy: Policy) -> tuple[list[RecordedEpisode], bool]:
    """Return the episodes that the policy's run held out, or else all it was trained on; and whether they are held out.

    Sources without actions have nothing to compare with, and are left out.
    """
    settings, sources = policy.recipe.held_out, _sources(policy)
    chosen = [held_out_episodes(each.sentences, settings.share, settings.seed, each.listed) for each in sources]
    held_out = any(chosen)
    numbers = chosen if held_out else [tuple(each.sentences) for each in sources]
    episodes = [
        RecordedEpisode(each.dataset, number, each.sentences[number], each.cameras)
        for each, some in zip(sources, numbers, strict=True)
        for number in some
    ]
    return episodes, held_out


def _sources(policy: Policy) -> list[_Source]:
    if policy.run is None:
        raise ConfigError("a policy without a run has no recorded episodes", next_step="pass dataset=")
    path = policy.run / "dataset.json"
    if not path.is_file():
        what, step = "the run does not say what it was trained on", "pass a dataset that it was not trained on"
        raise CheckpointError(what, where=path, got="no such file", next_step=f"--dataset: {step}")
    if not policy.recipe.sources:
        record = run_directory.read_json(path)
        data = _open(Path(record["path"]), record.get("names", ()))
        if (known := record.get("episodes", data.num_episodes)) != data.num_episodes:
            what, step = "the dataset must be as it was when the run began", "--dataset with another dataset"
            raise DatasetError(
                what, where=data.root, got=data.num_episodes, expected=f"{known} episodes", next_step=step
            )
        return [_Source(data, _sentences(data))]
    sources = []
    for source in policy.recipe.sources:
        if source.actions != "none":
            data = _open(Path(source.path), source.names)
            used = {
                number: sentence
                for number, sentence in _sentences(data).items()
                if (not source.episodes or number in source.episodes) and (not source.tasks or sentence in source.tasks)
            }
            renames = dict(pair.split("=", 1) for pair in source.cameras)
            sources.append(_Source(data, used, source.held_out, renames))
    return sources


def _open(path: Path, names: Sequence[str]) -> LeRobotDataset:
    path = find_dataset(path, names=parse_names(names))  # a Hub id, if its files are no longer where they were
    if not path.is_dir():
        what, step = "the dataset of the run is not there", "--dataset with one that the run was not trained on"
        raise DatasetError(what, where=path, next_step=step)
    return LeRobotDataset(path, parse_names(names))


def _sentences(data: LeRobotDataset) -> dict[int, str]:
    return episode_sentences(data.episode_start, data.vectors.frame_task, data.tasks)


def _check_widths(recipe: Recipe, data: LeRobotDataset) -> None:
    widths = {"action": (data.action_dim, recipe.model.action_dim)}
    if recipe.model.state_dim:
        widths["observation.state"] = (data.state_dim, recipe.model.state_dim)
    for feature, (got, expected) in widths.items():
        if got != expected:
            what = f"the dataset's {feature} must have the policy's width"
            raise DatasetError(what, where=data.root, got=got, expected=expected)


def _some(episodes: Sequence[RecordedEpisode], most_steps: int) -> list[RecordedEpisode]:
    """Return episodes of each instruction in turn as long as they have at most `most_steps` steps, in their order."""
    groups: dict[str, list[RecordedEpisode]] = defaultdict(list)
    for episode in episodes:
        groups[episode.instruction].append(episode)
    taken: list[RecordedEpisode] = []
    for episode in (each for turn in zip_longest(*groups.values()) for each in turn if each is not None):
        if taken and sum(map(len, taken)) + len(episode) > most_steps:
            break
        taken.append(episode)
    return [episode for episode in episodes if episode in taken]
