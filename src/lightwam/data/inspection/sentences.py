"""What looks wrong in a dataset's sentences and in the lengths of its episodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from lightwam.data.held_out import episode_sentences
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import first_few

FEW_EPISODES = 10


def episodes_by_sentence(dataset: LeRobotDataset) -> dict[str, int]:
    """Count the episodes of every sentence, by their first rows; the most frequent first."""
    return dict(Counter(episode_sentences(dataset).values()).most_common())


def short(sentence: str, most: int = 60) -> str:
    """Return a sentence, cut to `most` characters."""
    return sentence if len(sentence) <= most else f"{sentence[: most - 1]}…"


def sentence_problems(episodes: Mapping[str, int]) -> Iterator[str]:
    """Yield sentences that differ in spelling only, or that few episodes have."""
    spellings: dict[str, list[str]] = {}
    for sentence in episodes:
        spellings.setdefault(" ".join(re.findall(r"\w+", sentence.lower())), []).append(sentence)
    for alike in spellings.values():
        if len(alike) > 1:
            yield f"one task with {len(alike)} spellings: {first_few([repr(short(sentence)) for sentence in alike], 3)}"
    few = [f"{short(sentence)!r} {count}" for sentence, count in episodes.items() if count < FEW_EPISODES]
    if few:
        yield f"few episodes: {first_few(few, 3)}; under {FEW_EPISODES} of a task are hardly enough to learn it"


def length_problems(dataset: LeRobotDataset, horizon_s: float = 1.0) -> Iterator[str]:
    """Yield episodes that are shorter than a chunk, and a single episode."""
    lengths = np.diff(dataset.episode_start)
    short = np.flatnonzero(lengths < horizon_s * dataset.fps)
    if short.size:
        which = first_few([*map(str, short.tolist())])
        yield f"{short.size} of {len(lengths)} episodes are shorter than {horizon_s:g} s: {which}"
    if len(lengths) == 1:
        yield "there is one episode: the policy can only repeat it, and none is left to measure its error on"
