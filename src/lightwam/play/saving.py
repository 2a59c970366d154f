"""Saved episodes of a session: RUN/play/NAME with episode.json, actions.npy and film.mp4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.evaluation.episodes import task_files
from lightwam.evaluation.rollouts import EpisodeJob, FilmJob
from lightwam.play.commands import Event
from lightwam.play.world import PlayFilmJob, Seen
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.sim.disturb import Disturbance
from lightwam.system.files import explain_disk_errors, replace_file, write_file

FOLDER, FILM = "play", "film.mp4"


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode as far as it was played."""

    job: EpisodeJob
    sentence: str | None
    """told from the beginning; None: the task's own"""
    events: tuple[Event, ...]
    seen: Seen
    """what was last seen"""
    actions: Float32[np.ndarray, "steps A"]


def save(policy: Policy, played: PlayedEpisode, do: Callable[[PlayFilmJob], Any]) -> str:
    """Write an episode into the policy's run, and return its name there. `do` has the simulator's process do a job.

    Its film is made by executing the actions again, with the same disturbances.
    """
    assert policy.run is not None
    stem = f"{task_files(policy.recipe.simulation.tasks)[played.job.task]}-{played.job.seed}"
    disturbances = tuple(
        Disturbance(event.what, event.step, event.number)
        for event in played.events
        if event.what in ("object", "camera", "frozen")
    )
    film = do(PlayFilmJob(FilmJob(played.job.task, played.job.seed, played.actions, disturbances)))
    folder = _new_folder(policy.run / FOLDER, stem)
    write_file(folder / FILM, film)
    with replace_file(folder / "actions.npy") as draft, draft.open("wb") as file:
        np.save(file, played.actions)
    content = {
        "task": played.job.task,
        "seed": played.job.seed,
        "sentence": played.sentence,
        "events": [asdict(event) for event in played.events],
        "steps": played.seen.steps,
        "success": played.seen.success,
        "over": played.seen.is_over,
        "policy": policy.identity(),
    }
    run_directory.write_json(folder / "episode.json", content)
    return folder.name


def _new_folder(parent: Path, stem: str) -> Path:
    """Make a folder of its own for another saving of the same task and seed."""
    with explain_disk_errors(parent):
        parent.mkdir(exist_ok=True)
        number = 1
        while True:
            folder = parent / f"{stem}-{number}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
