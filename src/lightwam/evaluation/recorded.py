"""Recorded episodes that a run can be measured on: those it held out of training, or all of another dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from lightwam.config.schema import Recipe, SourceConfig
from lightwam.data.held_out import episode_sentences, episodes_in_use, held_out_episodes
from lightwam.data.lerobot.decoder import FrameDecoder
from lightwam.data.lerobot.features import parse_names
from lightwam.data.lerobot.hub import find_dataset
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import CheckpointError, ConfigError, DatasetError
from lightwam.policy.policy import Policy
from lightwam.system.progress import Say
from lightwam.training.dataset_record import read_records
from lightwam.training.sources import CORRECTION_COLUMNS
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
    """the codec's name of a camera -> the dataset's, if that is another one; "" for one that it lacks: black"""
    taught_rows: Bool[np.ndarray, " N"] | None = None
    """control steps of the dataset whose actions count; None: all"""

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

    @property
    def taught(self) -> Bool[np.ndarray, " T"]:
        """Whether the recorded action of each step is one to learn: of a source of corrections, a person's."""
        return np.ones(len(self), np.bool_) if self.taught_rows is None else self.taught_rows[self.rows]

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def pick(self, decoder: FrameDecoder, cameras: Sequence[str], steps: Sequence[int]) -> list[Observation]:
        """Return what a policy would have seen at some steps, which must rise, without decoding all others.

        `decoder` is one of the dataset's; `cameras` are the codec's names.
        """
        episode, rows = self.dataset.episodes[self.index], np.asarray(steps, np.int64)
        tasks, black = self.dataset.vectors.frame_task[self.rows], np.zeros((len(rows), 1, 1, 3), np.uint8)
        owned = {camera: self.cameras.get(camera, camera) for camera in cameras}
        clips = {name: decoder.pick(episode, own, rows) if own else black for name, own in owned.items()}
        return [
            Observation(
                {name: clip[i] for name, clip in clips.items()}, self.state[step], self.dataset.tasks[tasks[step]]
            )
            for i, step in enumerate(rows.tolist())
        ]

    def observations(self, cameras: Sequence[str]) -> Iterator[Observation]:
        """Yield what a policy would have seen at each step, in order; `cameras` are the codec's names."""
        tasks = self.dataset.vectors.frame_task[self.rows].tolist()
        with closing(self.dataset.decoder()) as decoder:
            episode = self.dataset.episodes[self.index]
            owned = [self.cameras.get(camera, camera) for camera in cameras]
            black = [np.zeros((len(self), 1, 1, 3), np.uint8)]
            streams = [decoder.stream(episode, camera, DECODED_TOGETHER) if camera else black for camera in owned]
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

    @cached_property
    def taught(self) -> Bool[np.ndarray, " N"]:
        """Whether the action of each step is one to learn."""
        return np.concatenate([episode.taught for episode in self.episodes])

    @property
    def num_steps(self) -> int:
        """Control steps of all episodes."""
        return int(self.episode_start[-1])


def recorded_episodes(
    policy: Policy, dataset: Path | str | None = None, most_steps: int = 3000, say: Say = print
) -> Recorded:
    """Return episodes to measure the policy on: whole ones, of all instructions in turn, up to `most_steps` (or one).

    Those that its run held out; without any, those it was trained on. All episodes of `dataset`, if that is given; they
    are not called held out if the run was trained on that dataset. `say` is told which sources of the run are left out.
    CheckpointError when the run does not say where its datasets are, or has others than its recipe; DatasetError when
    one is missing, was changed or has other widths than the policy.
    """
    if dataset is not None:
        data = LeRobotDataset(find_dataset(dataset, policy.cameras, say=say))
        sources = [_Source(data, episode_sentences(data))]
    else:
        sources = _of_one_rate(_sources(policy, say), say)
    for source in sources:
        _check_widths(policy.recipe, source.dataset)
    settings = policy.recipe.held_out
    numbers = [held_out_episodes(each.sentences, settings.share, settings.seed, each.listed) for each in sources]
    held_out = any(numbers) if dataset is None else not _was_trained_on(policy, sources[0].dataset)
    if dataset is not None or not held_out:
        numbers = [tuple(each.sentences) for each in sources]
    chosen = [
        RecordedEpisode(each.dataset, number, each.sentences[number], each.cameras, each.taught)
        for each, some in zip(sources, numbers, strict=True)
        for number in some
    ]
    instructions = sorted({sentence for each in sources for sentence in each.sentences.values()})
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
    taught: Bool[np.ndarray, " N"] | None = None
    """steps whose actions are learnt; None: all"""


def _was_trained_on(policy: Policy, data: LeRobotDataset) -> bool:
    """Return whether the policy's run was trained on the dataset at this place, as far as the run says."""
    if policy.run is None or not (policy.run / "dataset.json").is_file():
        return False
    return data.root.resolve() in [Path(record["path"]).resolve() for record in read_records(policy.run)]


def _sources(policy: Policy, say: Say) -> list[_Source]:
    """Open the datasets that the policy's run was trained on, without those that have no actions to compare with."""
    if policy.run is None:
        raise ConfigError("a policy without a run has no recorded episodes", next_step="pass dataset=")
    path = policy.run / "dataset.json"
    if not path.is_file():
        what, step = "the run does not say what it was trained on", "pass a dataset that it was not trained on"
        raise CheckpointError(what, where=path, got="no such file", next_step=f"--dataset: {step}")
    records = read_records(policy.run)
    settings = policy.recipe.sources or (SourceConfig(records[0]["path"]),)
    if len(records) != len(settings):
        what, step = "a run must have the datasets of its recipe", "copy the run again, or pass --dataset with another"
        expected = f"{len(settings)}, as in recipe.json"
        raise CheckpointError(what, where=path, got=f"{len(records)} datasets", expected=expected, next_step=step)
    sources: list[_Source] = []
    for source, record in zip(settings, records, strict=True):
        if source.actions == "none":
            continue
        renames = {name: camera for camera, _, name in (pair.partition("=") for pair in source.cameras)}
        cameras = {renames.get(camera, camera) for camera in policy.cameras} - {""}
        data = _open(record, source.path, cameras, say)
        if (known := record.get("episodes", data.num_episodes)) != data.num_episodes:
            what, step = "the dataset must be as it was when the run began", "--dataset with another dataset"
            raise DatasetError(
                what, where=data.root, got=data.num_episodes, expected=f"{known} episodes", next_step=step
            )
        taught = data.flag(CORRECTION_COLUMNS) if source.actions == "corrections" else None
        used = episodes_in_use(episode_sentences(data), source)
        sources.append(_Source(data, used, source.held_out, renames, taught))
    return sources


def _of_one_rate(sources: Sequence[_Source], say: Say) -> list[_Source]:
    """Return the sources of the first one's rate, which is the policy's; `say` is told of the others."""
    fps = sources[0].dataset.fps
    for each in sources:
        if each.dataset.fps != fps:
            say(f"{each.dataset.root}: left out of the open loop: {each.dataset.fps:g} fps, the policy has {fps:g}")
    return [each for each in sources if each.dataset.fps == fps]


def _open(record: Mapping[str, Any], asked: str, cameras: Collection[str], say: Say) -> LeRobotDataset:
    """Open a dataset of a run, from the Hub if its files are no longer where they were."""
    path, names, hub = Path(record["path"]), parse_names(record.get("names", ())), record.get("hub", {})
    if not path.is_dir():
        path = find_dataset(hub.get("id", asked), cameras, names, commit=hub.get("commit", ""), say=say)
    if not path.is_dir():
        what, step = "the dataset of the run is not there", "--dataset with one that the run was not trained on"
        raise DatasetError(what, where=path, next_step=step)
    return LeRobotDataset(path, names)


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
