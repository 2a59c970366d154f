"""The report page: one HTML file that loads nothing from elsewhere. The sections and their texts are in templates/."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from lightwam.config.schema import Recipe
from lightwam.config.strict_json import to_dict
from lightwam.report import imagination, training, watch
from lightwam.report.evidence import Evidence
from lightwam.report.formatting import render
from lightwam.report.rollouts import rollouts
from lightwam.report.watch_evidence import DETECTORS

SECTIONS = (
    *(("success", "Success"), ("open_loop", "Errors"), ("rollouts", "Rollouts"), ("imagination", "Predictions")),
    *(("attention", "Attention"), ("swap", "Instructions"), ("watch", "Watch"), ("curves", "Training")),
    *(("time", "Time"), ("reproduce", "Config")),
)
"""template and title, in the order of the page"""


def page(evidence: Evidence) -> str:
    """Return the report as HTML."""
    recipe, log, probe = evidence.recipe, evidence.log, evidence.probe
    demonstrations = evidence.dataset.episodes if evidence.dataset else None
    if demonstrations is None and not log and recipe.sim is not None and recipe.collect is not None:
        demonstrations = sum(recipe.collect.demos(task) for task in recipe.sim.tasks)
    examples = evidence.watch.examples if evidence.watch else ()
    return render(
        "page.html",
        run=evidence,
        recipe=recipe,
        name=evidence.run.resolve().name,
        sections=[section for section in SECTIONS if _is_shown(section, evidence)],
        commands=commands(recipe, evidence.run),
        demonstrations=demonstrations,
        rollouts=rollouts(evidence),
        open_loop=evidence.open_loop,
        futures=imagination.futures(probe) if probe else None,
        far=imagination.far_futures(*evidence.futures) if evidence.futures else None,
        attention=imagination.attention(probe) if probe else None,
        roc_charts=watch.roc_charts(evidence.watch) if evidence.watch else [],
        examples=[watch.example_view(example, evidence.watch_canvases[example.kind]) for example in examples],
        titles=watch.TITLES,
        detectors=DETECTORS,
        training_charts=training.training_charts(log) if log else [],
        num_not_finite=int((~np.isfinite(log.columns["loss"])).sum()) if log else 0,
        speed_range=np.quantile(log.columns["samples_per_second"], (0.1, 0.5, 0.9)).tolist() if log else None,
        wall_time=training.wall_time(evidence.demo.wall_seconds) if evidence.demo else None,
        settings={
            "Evaluation protocol, versions and machine": training.protocol_settings(evidence),
            "All settings of the recipe": training.flatten(
                {key: value for key, value in to_dict(recipe).items() if key != "notes"}
            ),
        },
    )


def _is_shown(section: tuple[str, str], evidence: Evidence) -> bool:
    """Tell whether a section is on the page: some need a simulator, errors on recorded episodes stand in for it.

    A run whose recipe has none may have been evaluated in that of another one.
    """
    has_simulator = evidence.recipe.sim is not None
    evaluated = has_simulator or evidence.result is not None or bool(evidence.episodes)
    return {
        "open_loop": evidence.open_loop is not None or not has_simulator,
        "success": evaluated,
        "rollouts": evaluated,
        "swap": has_simulator or evidence.swap is not None,
        "watch": has_simulator,
    }.get(section[0], True)


def commands(recipe: Recipe, run: Path) -> dict[str, str]:
    """Return the commands that make each part of a run."""
    path, data = shlex.quote(str(run)), f"data/{recipe.name}"
    if recipe.sim is None:
        return {
            "train": f"lightwam train {path}",
            "eval": f"lightwam eval {path}",
            "open_loop": f"lightwam eval {path}",
            "closed_loop": f"lightwam eval {path} RECIPE",
            "report": f"lightwam report {path}",
            "imagine": f"lightwam report {path} --imagine",
        }
    return {
        "collect": f"lightwam collect {recipe.name} --dataset {data}",
        "train": f"lightwam train {recipe.name} --dataset {data} --run {path}",
        "eval": f"lightwam eval {path}",
        "open_loop": f"lightwam eval {path} --open-loop",
        "closed_loop": f"lightwam eval {path}",
        "report": f"lightwam report {path}",
        "demo": f"lightwam demo {recipe.name} --run {path}",
        "imagine": f"lightwam report {path} --imagine",
        "swap": f"lightwam report {path} --swap",
        "watch": f"lightwam watch {path}",
    }
