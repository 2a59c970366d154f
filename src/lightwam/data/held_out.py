"""The episodes that are never trained on, so that a policy's error can be measured on them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from lightwam.errors import ConfigError, first_few

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


def episode_sentences(
    episode_start: Int64[np.ndarray, " episodes_and_1"], task_index: Int64[np.ndarray, " N"], tasks: Sequence[str]
) -> dict[int, str]:
    """Return episode -> the instruction of its first step, from the arrays of a cache or a dataset's vectors."""
    return {episode: tasks[task] for episode, task in enumerate(task_index[episode_start[:-1]].tolist())}


def _draw(seed: int, episode: int) -> bytes:
    """Return the episode's place in the order in which episodes are held out: the same on every machine."""
    return hashlib.sha256(f"{seed} {episode}".encode()).digest()
