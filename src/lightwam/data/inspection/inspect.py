"""The inspection of a dataset: what its numbers are, and everything that looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightwam.data.inspection import numbers, pictures, sentences
from lightwam.data.inspection.dims import ActionKind, Dim, action_dims, action_kind
from lightwam.data.inspection.pictures import Pictures, sample_pictures
from lightwam.data.inspection.tracks import Tracks, read_tracks
from lightwam.data.lerobot.columns import time_notes
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.system.progress import OnProgress, no_progress


@dataclass(frozen=True)
class Inspection:
    """What was found in a dataset."""

    dims: tuple[Dim, ...]
    """of the action"""
    kind: ActionKind
    lead_steps: int | None
    """rows by which targets lead the state; None if that cannot be said"""
    state_unit: str
    action_unit: str
    """of joint angles; "" if unknown"""
    outliers: bool
    """some numbers are far outside the range of nearly all others"""
    grippers: str
    """description of the grippers; "" without one"""
    sentences: Mapping[str, int]
    """sentence -> its episodes"""
    pictures: Pictures
    problems: tuple[str, ...]
    """what looks wrong, a line each"""

    def of_kind(self, *kinds: str) -> tuple[int, ...]:
        """Return the action dimensions of these kinds."""
        return tuple(dim.index for dim in self.dims if dim.kind in kinds)


def inspect_dataset(
    dataset: LeRobotDataset,
    cameras: Sequence[str],
    kind: ActionKind | None = None,
    progress: OnProgress = no_progress,
) -> Inspection:
    """Inspect the numbers of all rows (of very large datasets, of a part) and a sample of the pictures of `cameras`.

    `kind` says what the actions are where the guess would be wrong. DatasetError when a file is broken. `progress`
    counts pictures.
    """
    tracks = read_tracks(dataset)
    dims = action_dims(tracks, kind)
    found = sentences.episodes_by_sentence(dataset)
    targets = [dim.index for dim in dims if dim.kind == "target"]
    lead = numbers.lead_steps(tracks, targets) if targets else None
    views = sample_pictures(dataset, dims, cameras, progress)
    return Inspection(
        dims,
        kind or action_kind(dims),
        lead,
        numbers.unit_word(tracks.state_names, tracks.state),
        numbers.unit_word(tracks.action_names, tracks.action) if targets else "",
        numbers.have_outliers(tracks, dims),
        numbers.gripper_words(tracks, dims),
        found,
        views,
        tuple(_problems(dataset, tracks, dims, lead, found, views)),
    )


def _problems(
    dataset: LeRobotDataset,
    tracks: Tracks,
    dims: Sequence[Dim],
    lead: int | None,
    found: Mapping[str, int],
    views: Pictures,
) -> Iterator[str]:
    if not dataset.state_dim:
        more = f"; if the dataset has one, {step}" if (step := dataset.state_proposal()) else ""
        yield f"there is no observation.state: the policy will not know where the robot is{more}"
    yield from sentences.sentence_problems(found)
    yield from sentences.length_problems(dataset)
    yield from numbers.lead_problems(tracks, dims, lead)
    yield from numbers.scale_problems(tracks, dims)
    yield from numbers.still_problems(tracks)
    yield from numbers.idle_problems(tracks, dims)
    if dataset.vectors.timestamp is not None:
        yield from time_notes(dataset.vectors.timestamp, dataset.episode_start, dataset.fps)
    yield from pictures.picture_problems(views)
