"""The episodes that are never trained on, so that a policy's error can be measured on them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from lightwam.config.schema import SourceConfig
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError, did_you_mean, first_few

FEW = 4
"""a sentence with fewer episodes gives none of its own: such sentences are drawn from together"""


def held_out_episodes(
    sentences: Mapping[int, str], share: float, seed: int = 0, listed: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the episodes to hold out, in ascending order; () with a `share` of 0.

    `sentences`: episode -> its instruction, of the episodes of one dataset that are in use (`episode_sentences`).
    `share` of the episodes of every sentence are held out, rounded, and at least one where there are four or more.
    Sentences with fewer than four episodes are taken together as if they were one. Which ones depends on `seed` and
    the episodes' numbers only, so most of them stay held out when a dataset grows. `listed` episodes, if any, are
    returned instead; ConfigError if one is not in use.
    """
    if listed:
        if unknown := sorted(set(listed) - set(sentences)):
            got, expected = first_few(list(map(str, unknown))), f"some of the {len(sentences)} episodes in use"
            raise ConfigError("held-out episodes must be in use", where="held_out", got=got, expected=expected)
        return tuple(sorted(set(listed)))
    if not share:
        return ()
    groups: dict[str | None, list[int]] = defaultdict(list)
    for episode, sentence in sentences.items():
        groups[sentence].append(episode)
    rare = [sentence for sentence, episodes in groups.items() if len(episodes) < FEW]
    groups[None] = [episode for sentence in rare for episode in groups.pop(sentence)]
    chosen: list[int] = []
    for episodes in groups.values():
        if len(episodes) >= FEW:
            count = min(max(1, round(share * len(episodes))), len(episodes) - 1)
            chosen += sorted(episodes, key=lambda episode: _draw(seed, episode))[:count]
    return tuple(sorted(chosen))


def episode_sentences(dataset: LeRobotDataset) -> dict[int, str]:
    """Return episode -> the instruction of its first step; DatasetError when the dataset's tables are broken."""
    return {episode: dataset.tasks[task] for episode, task in enumerate(dataset.vectors.task_index.tolist())}


def episodes_in_use(sentences: Mapping[int, str], source: SourceConfig) -> dict[int, str]:
    """Return those of a dataset's episodes, and their instructions, that a source of a recipe uses.

    ConfigError when the source names an episode or an instruction that the dataset lacks.
    """
    if unknown := sorted(set(source.episodes) - set(sentences)):
        got, expected = first_few(list(map(str, unknown))), f"0..{len(sentences) - 1}"
        raise ConfigError("a source's episodes must be in its dataset", where=source.path, got=got, expected=expected)
    if unknown_tasks := sorted(set(source.tasks) - set(sentences.values())):
        what, step = (
            "a source's tasks must be sentences of its dataset",
            did_you_mean(unknown_tasks[0], sentences.values()),
        )
        raise ConfigError(what, where=source.path, got=repr(unknown_tasks[0]), next_step=step)
    return {
        episode: sentence
        for episode, sentence in sentences.items()
        if (not source.episodes or episode in source.episodes) and (not source.tasks or sentence in source.tasks)
    }


def _draw(seed: int, episode: int) -> bytes:
    """Return the episode's place in the order in which episodes are held out: the same on every machine."""
    return hashlib.sha256(f"{seed} {episode}".encode()).digest()
