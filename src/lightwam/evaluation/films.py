"""Videos of an evaluation's episodes, made from their actions after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lightwam.config.schema import Recipe
from lightwam.evaluation.episodes import read_episodes, task_files
from lightwam.evaluation.rollouts import FilmJob, at_reset
from lightwam.system.files import explain_disk_errors, write_file
from lightwam.system.jobs import JobRunner


def film(jobs: JobRunner, recipe: Recipe, folder: Path, say: Callable[[str], None]) -> None:
    """Make videos of each task's first `videos_per_task` successes and as many failures, and note them in the rows."""
    rows, names = read_episodes(folder), task_files(recipe.simulation.tasks)
    todo: list[FilmJob] = []
    for task in recipe.simulation.tasks:
        for success, outcome in ((True, "success"), (False, "failure")):
            seeds = sorted(seed for (name, seed), row in rows.items() if name == task and row["success"] == success)
            for seed in seeds[: recipe.eval.videos_per_task]:
                stem = f"{names[task]}-{seed}"
                rows[task, seed]["video"] = f"videos/{stem}-{outcome}.mp4"
                if not (folder / rows[task, seed]["video"]).exists():
                    actions, disturbance = np.load(folder / "actions" / f"{stem}.npy"), at_reset(recipe.eval, seed)
                    todo.append(FilmJob(task, seed, actions, (disturbance,) if disturbance else ()))
    with explain_disk_errors(folder / "videos"):
        (folder / "videos").mkdir(exist_ok=True)
    if todo:
        say(f"eval: filming {len(todo)} episodes")
    for finished in jobs.run(todo):
        write_file(folder / rows[finished.job.task, finished.job.seed]["video"], finished.answer)
    write_file(folder / "episodes.jsonl", "".join(json.dumps(row) + "\n" for row in rows.values()))
