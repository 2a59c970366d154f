"""Samples of a dataset's pictures: for the picture of the canvas, and to find black, repeated and missing ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from lightwam.data.inspection.dims import Dim
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.system.progress import OnProgress, no_progress

SHOWN_EPISODES, CHECKED_EPISODES = 3, 6
BURST, BURSTS = 12, 2
"""consecutive pictures that are compared with each other, and how many such series of an episode"""
BLACK = 8.0
"""grey level of 255: darker pictures are black"""
SIDE = 64
"""pixels, at most, of the sides that pictures are compared at"""
SAME = 0.1
"""a picture repeats the last one if it differs by less than this share of the usual difference while the robot moves"""
SAME_LEVELS = 0.3
"""... and by fewer grey levels than this"""
FEW = 0.05
"""share of the sampled pictures from which a fault is reported"""


@dataclass(frozen=True)
class Shown:
    """The first, middle and last pictures of one episode."""

    episode: int
    sentence: str
    rows: tuple[int, ...]
    frames: Mapping[str, UInt8[np.ndarray, "T _h _w 3"]]
    """camera -> its pictures at these rows"""


@dataclass(frozen=True)
class Burst:
    """Differences between consecutive pictures of one camera, and how much the robot moved meanwhile."""

    level: Float64[np.ndarray, " n"]
    """mean grey level of each picture"""
    difference: Float64[np.ndarray, " n_less_1"]
    """mean absolute difference in grey levels between a picture and the next one"""
    moving: Bool[np.ndarray, " n_less_1"]
    """whether the robot moved between the two, at half its usual speed at least"""


@dataclass(frozen=True)
class Pictures:
    """A sample of the pictures."""

    shown: tuple[Shown, ...]
    bursts: Mapping[str, tuple[Burst, ...]]
    """camera -> series of consecutive pictures"""


def sample_pictures(
    dataset: LeRobotDataset, dims: Sequence[Dim], cameras: Sequence[str], progress: OnProgress = no_progress
) -> Pictures:
    """Decode some pictures of these cameras, which `progress` counts; DatasetError when a file is broken."""
    count = dataset.num_episodes
    checked, shown = _spread(count, CHECKED_EPISODES), _shown_episodes(dataset)
    bursts: dict[str, list[Burst]] = {camera: [] for camera in cameras}
    views: dict[int, dict[str, np.ndarray]] = {number: {} for number in shown}
    done, total = 0, len(cameras) * (len(checked) * BURSTS * BURST + 3 * len(shown))
    with closing(dataset.decoder()) as decoder:
        for camera in cameras:
            for number in sorted({*checked, *shown}):
                episode = dataset.episodes[number]
                if number in views:
                    views[number][camera] = decoder.pick(episode, camera, _three(episode.length))
                    done += 3
                for rows in _burst_rows(episode.length) if number in checked else ():
                    clip = decoder.pick(episode, camera, rows)
                    bursts[camera].append(_burst(clip, _moving(dataset, dims, number, rows)))
                    done += BURST
                progress(min(done, total), total)
    sentences = {number: dataset.tasks[int(dataset.vectors.task_index[number])] for number in shown}
    rows_of = {number: tuple(_three(dataset.episodes[number].length).tolist()) for number in shown}
    return Pictures(
        tuple(Shown(number, sentences[number], rows_of[number], views[number]) for number in shown),
        {camera: tuple(found) for camera, found in bursts.items()},
    )


def picture_problems(pictures: Pictures) -> Iterator[str]:
    """Yield cameras with black, repeated or missing pictures, or that show the same picture all the time."""
    for camera, bursts in pictures.bursts.items():
        level = np.concatenate([burst.level for burst in bursts])
        difference = np.concatenate([burst.difference for burst in bursts])
        moving = np.concatenate([burst.moving for burst in bursts])
        black = float((level < BLACK).mean())
        if black > FEW:
            yield f"{black:.0%} of the sampled pictures of camera {camera} are black"
        changes = difference[moving]
        if black > 0.5 or len(changes) < 10:
            continue
        usual = float(np.quantile(changes, 0.75))
        if usual < 0.02:
            yield f"camera {camera} shows the same picture while the robot moves: it was frozen"
            continue
        same = float((changes < min(SAME * usual, SAME_LEVELS)).mean())
        if same > FEW:
            rate = ": nothing moved in its view, or frames were dropped"
            if same > 0.2:
                rate = f", so it ran at about {1 - same:.0%} of the rows' rate"
            yield f"{same:.0%} of the sampled pictures of camera {camera} repeat the one before{rate}"
        jumps = float((changes > 6 * usual).mean())
        if jumps > FEW:
            yield f"{jumps:.0%} of the sampled pictures of camera {camera} jump: pictures between them are missing"


def _shown_episodes(dataset: LeRobotDataset) -> list[int]:
    """Return evenly spaced episodes, of different sentences first."""
    task = dataset.vectors.task_index
    first = [int(np.flatnonzero(task == index)[0]) for index in np.unique(task)]
    first = [first[i] for i in _spread(len(first), SHOWN_EPISODES)]
    others = [number for number in _spread(dataset.num_episodes, SHOWN_EPISODES) if number not in first]
    return sorted([*first, *others[::-1]][:SHOWN_EPISODES])


def _spread(count: int, most: int) -> list[int]:
    return list(dict.fromkeys(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()))


def _three(length: int) -> Int64[np.ndarray, " 3"]:
    """Return the first, the middle and the last row of an episode."""
    return np.array([0, length // 2, length - 1], np.int64)


def _burst_rows(length: int) -> Iterator[Int64[np.ndarray, " n"]]:
    """Yield series of consecutive rows from within an episode, where the robot usually moves."""
    size = min(BURST, length)
    for part in range(BURSTS):
        first = round((part + 1) * (length - size) / (BURSTS + 1))
        yield np.arange(first, first + size)


def _burst(clip: UInt8[np.ndarray, "n _h _w 3"], moving: Bool[np.ndarray, " n_less_1"]) -> Burst:
    step = max(1, max(clip.shape[1:3]) // SIDE)
    small = clip[:, ::step, ::step].astype(np.float64).mean(-1)
    return Burst(small.mean((1, 2)), np.abs(np.diff(small, axis=0)).mean((1, 2)), moving)


def _moving(
    dataset: LeRobotDataset, dims: Sequence[Dim], number: int, rows: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n_less_1"]:
    """Return whether the robot moves from each of an episode's rows to the next, by its state or else its actions."""
    vectors, span = dataset.vectors, slice(*dataset.episode_start[number : number + 2])
    motions = [dim.index for dim in dims if dim.kind == "motion"]
    if dataset.state_dim or not motions:
        values = vectors.state[span] if dataset.state_dim else vectors.action[span]
        steps = np.abs(np.diff(values, axis=0))
    else:
        steps = np.abs(vectors.action[span][:-1, motions])
    speed = (steps / np.maximum(steps.max(0, initial=0.0), 1e-9)).mean(1)
    usual = float(np.median(speed[speed > 0])) if (speed > 0).any() else np.inf
    moving: Bool[np.ndarray, " n_less_1"] = speed[rows[:-1]] >= 0.5 * usual
    return moving
