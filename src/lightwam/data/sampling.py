"""Which windows are drawn, and in which order: a function of the seed and a sample's position alone.

Position p, counted from the first sample of a run, is in block p // BLOCK. A block holds an exact number of samples of
every source, and their order is drawn from (seed, block). The samples of a source, one after the other, walk through
permutations of its windows: one an epoch, drawn from (seed, epoch, source). So a single source gives a permutation of
its windows an epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

BLOCK = 4096
"""samples"""


@dataclass(frozen=True, eq=False)
class Part:
    """The windows that are drawn of one source."""

    windows: Int64[np.ndarray, " n"]
    """the control steps at which they begin, rising"""
    weight: float = 1.0
    """share of the samples, relative to the other sources' weights, whatever the number of windows"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sampling:
    """Which windows of a cache are drawn, how often, and what each control step teaches."""

    parts: tuple[Part, ...]
    """one a source; each has a window and a weight above 0"""
    teaches_action: Bool[np.ndarray, " N"]
    """whether the action of a control step is part of the action loss"""
    teaches_video: Bool[np.ndarray, " N"]
    """whether a window that begins there is part of the video loss"""
    has_state: Bool[np.ndarray, " N"]
    """False: the model's input is a state of zeros (normalised)"""
    held_out: tuple[int, ...] = ()
    """episodes of which no window is drawn, so that a policy's error is measured on them"""

    @classmethod
    def everything(cls, num_steps: int) -> Sampling:
        """Return one source, of which all windows are drawn and teach all."""
        yes = np.ones(num_steps, np.bool_)
        return cls(parts=(Part(np.arange(num_steps)),), teaches_action=yes, teaches_video=yes, has_state=yes)

    @property
    def num_windows(self) -> int:
        """Number of windows that are drawn, of all sources."""
        return sum(len(part.windows) for part in self.parts)

    def digest(self) -> str:
        """Return a hash of all of it; "" if it is `everything`."""
        yes = self.teaches_action.all() and self.teaches_video.all() and self.has_state.all()
        if yes and len(self.parts) == 1 and self.num_windows == len(self.has_state):
            return ""
        text = hashlib.blake2b(digest_size=16)
        for part in self.parts:
            text.update(f"{part.weight!r} {len(part.windows)} ".encode() + part.windows.astype("<i8").tobytes())
        for table in (self.teaches_action, self.teaches_video, self.has_state):
            text.update(np.packbits(table).tobytes())
        return text.hexdigest()


class WindowOrder:
    """The endless sequence of samples: the window at every position, and the shifts of its `num_places` cameras.

    Shifts are within -`reach`..`reach` pixels each way.
    """

    def __init__(self, parts: Sequence[Part], seed: int, num_places: int, reach: int) -> None:
        assert parts and all(len(part.windows) and part.weight > 0 for part in parts), parts
        self._parts, self._seed, self._num_places, self._reach = parts, seed, num_places, reach
        weights = [part.weight for part in parts]
        self._shares, self._heaviest = [weight / sum(weights) for weight in weights], int(np.argmax(weights))
        self._walks: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._block, self._turns = -1, np.empty((2, 0), np.int64)

    def at(self, positions: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n places 2"]]:
        """Return the windows at these positions, and the shift (down, right) of each camera."""
        source, turn = self._sources(positions)
        window = np.empty(len(positions), np.int64)
        shifts = np.empty((len(positions), self._num_places, 2), np.int64)
        for number, part in enumerate(self._parts):
            epoch, row = np.divmod(turn, len(part.windows))
            for now in np.unique(epoch[source == number]):
                here = (source == number) & (epoch == now)
                order, moves = self._walk(number, int(now))
                window[here], shifts[here] = part.windows[order[row[here]]], moves[row[here]]
        return window, shifts

    def _sources(self, positions: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Return the source of each position, and how many earlier positions are of the same source."""
        found = np.empty((2, len(positions)), np.int64)
        for block in np.unique(positions // BLOCK):
            here = positions // BLOCK == block
            found[:, here] = self._block_turns(int(block))[:, positions[here] % BLOCK]
        return found[0], found[1]

    def _block_turns(self, block: int) -> Int64[np.ndarray, "2 block"]:
        if block != self._block:
            before, after = self._given(block * BLOCK), self._given((block + 1) * BLOCK)
            labels = np.repeat(np.arange(len(self._parts)), after - before)
            stream = np.random.default_rng([self._seed, block, len(self._parts)])  # sources have the numbers below
            labels, turns = stream.permutation(labels), np.empty(BLOCK, np.int64)
            for number, first in enumerate(before):
                turns[labels == number] = first + np.arange(after[number] - first)
            self._block, self._turns = block, np.stack([labels, turns])
        return self._turns

    def _given(self, count: int) -> Int64[np.ndarray, " sources"]:
        """Return how many of the first `count` positions, a multiple of BLOCK, are of each source."""
        given = np.array([int(count * share) for share in self._shares])
        given[self._heaviest] += count - given.sum()
        return given

    def _walk(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an epoch of a source: the order of its windows, and their shifts."""
        if source not in self._walks or self._walks[source][0] != epoch:
            stream, count = np.random.default_rng([self._seed, epoch, source]), len(self._parts[source].windows)
            order, size = stream.permutation(count), (count, self._num_places, 2)
            moves = stream.integers(-self._reach, self._reach, size, np.int16, endpoint=True)
            self._walks[source] = epoch, order, moves
        return self._walks[source][1:]
