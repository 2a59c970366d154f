"""A run's model card: what the policy takes and returns, what was measured, and what was not.

Everything on it is read from the run's files; templates/model_card.md has the text. It needs the `hub` extra.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightwam import __version__
from lightwam.config.schema import Recipe
from lightwam.config.strict_json import added
from lightwam.data.codec import Codec
from lightwam.encoders.weight_files import REPO
from lightwam.evaluation.result_files import Count, Protocol, read_part
from lightwam.policy import run_directory
from lightwam.policy.hub import hub_errors
from lightwam.policy.tensor_files import num_values
from lightwam.report.evidence import DatasetRecord, EvaluationResult, Evidence, SuccessRate, read_evidence
from lightwam.report.formatting import plural, render, simulator_title
from lightwam.sim.registry import robot_units
from lightwam.sim.simulator import RobotUnits

LICENSE = "apache-2.0"
"""lightwam's own, as the Hub spells it"""


@dataclass(frozen=True, kw_only=True)
class CardProtocol(Protocol):
    """What the card names of an evaluation's constants."""

    checkpoint_step: Count
    weights: str
    computes: str
    sentences: Mapping[str, str] | None = added(None)
    success: str


@dataclass(frozen=True)
class Machine:
    """What the card names of the machine that trained."""

    processor: str
    cores: Count


@dataclass(frozen=True)
class Card:
    """What a card is written from."""

    recipe: Recipe
    codec: Codec
    evidence: Evidence
    protocol: CardProtocol | None
    step: int
    has_average: bool
    num_trained: int
    num_frozen: int
    robot: RobotUnits | None
    repo: str
    license: str
    hub_dataset: str
    dataset: str
    """its files in a sentence"""

    @property
    def name(self) -> str:
        """The repo without its owner."""
        return self.repo.partition("/")[2]

    @property
    def weights(self) -> str:
        """The Hub repo of the pretrained weights; "" when they come from a folder, or none are needed."""
        weights = self.recipe.weights
        return weights if REPO.fullmatch(weights) and not Path(weights).exists() else ""

    @property
    def own_result(self) -> EvaluationResult | None:
        """The evaluation, if it was of these weights with the tasks' own instructions."""
        asked = self.protocol
        return self.evidence.result if asked and asked.checkpoint_step == self.step and not asked.sentences else None

    @property
    def steps_per_second(self) -> float | None:
        """Control steps per second, None when the run's files do not say."""
        if self.evidence.probe:
            return self.evidence.probe.fps
        return self.robot.steps_per_second / self.recipe.simulation.action_repeat if self.robot else None

    @property
    def machine(self) -> str:
        """What `lightwam demo` trained on, "" for other runs."""
        if not (self.evidence.demo and self.evidence.demo.machine):
            return ""
        machine = read_part(Machine, self.evidence.demo.machine, "result.json.machine")
        return f"{machine.processor}, {plural(machine.cores, 'core')}"


def model_card(
    run: Path, step: int | None = None, *, repo: str = "OWNER/NAME", license: str = LICENSE, dataset: str = ""
) -> str:
    """Return the card of a run's checkpoint (the newest by default): Markdown, with the Hub's YAML on top.

    `repo` is the name that it will get, `dataset` the Hub id of the dataset that it was trained on, if that is public.
    CheckpointError without the `hub` extra, for a directory that is no run, and for a broken file, naming it.
    """
    evidence, folder = read_evidence(run), run_directory.checkpoint_dir(run, step)
    frozen, result, recipe = run / run_directory.FROZEN, evidence.result, evidence.recipe
    robot, sizes = robot_units(recipe.simulation.name), (recipe.model.state_dim, recipe.model.action_dim)
    if robot and (len(robot.state), len(robot.action)) != sizes:
        robot = None  # it is not the model's
    card = Card(
        recipe=recipe,
        codec=run_directory.read_processing(run)[0],
        evidence=evidence,
        protocol=read_part(CardProtocol, result.protocol, "eval/result.json.protocol") if result else None,
        step=int(folder.name.removeprefix("step_")),
        has_average=(folder / "ema.safetensors").is_file(),
        num_trained=num_values(folder / "model.safetensors"),
        num_frozen=num_values(frozen) if frozen.is_file() else 0,
        robot=robot,
        repo=repo,
        license=license,
        hub_dataset=dataset,
        dataset=_describe(evidence.dataset),
    )
    return render(
        "model_card.md",
        card=card,
        recipe=recipe,
        protocol=card.protocol,
        result=result,
        metadata=_metadata(card),
        features=[  # title, statistics, and units by name, if known
            ("State", card.codec.state, robot.state if robot else {}),
            ("Action", card.codec.action, robot.action if robot else {}),
        ],
        in_words=_in_words,
        version=__version__,
    )


def _metadata(card: Card) -> str:
    """Return the YAML that the Hub reads."""
    with hub_errors(card.repo, "the model card cannot be written"):
        from huggingface_hub import EvalResult, ModelCardData

    rows: list[tuple[str, str, SuccessRate]] = []
    if card.own_result:
        tasks = card.own_result.tasks
        rows = [("all", f"all {len(tasks)} tasks", card.own_result)] if len(tasks) > 1 else []
        rows += [(name, name, task) for name, task in tasks.items()]
    sim = card.protocol.sim.name if card.protocol else card.recipe.simulation.name
    results = [
        EvalResult(
            task_type="robotics",
            task_name="closed-loop control",
            dataset_type=sim,
            dataset_name=f"{simulator_title(sim)}, {title}",
            dataset_config=config,
            metric_type="success_rate",
            metric_name=f"success rate, {_in_words(success)}",
            metric_value=round(success.rate, 4),
        )
        for config, title, success in rows
    ]
    data = ModelCardData(
        license=card.license,
        library_name="lightwam",
        pipeline_tag="robotics",
        tags=["robotics", "lightwam", "world-action-model", "imitation-learning", card.recipe.simulation.name],
        datasets=[card.hub_dataset] if card.hub_dataset else None,
        base_model=card.weights or None,
        model_name=card.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _in_words(success: SuccessRate) -> str:
    low, high = (100 * end for end in success.interval)
    rate = f"{100 * success.rate:.3g} %, 95 % interval {low:.0f} to {high:.0f} %"
    return f"{success.successes} of {success.trials} episodes ({rate})"


def _describe(dataset: DatasetRecord | None) -> str:
    """Describe a dataset by its files, without its path."""
    if not dataset:
        return "the run's files hold no fingerprint of it"
    files = dataset.fingerprint
    sizes = [re.match(r"(\d+) bytes", str(line)) for line in files.values()]
    total = f", {sum(int(size[1]) for size in sizes if size) / 1e6:.4g} MB" if all(sizes) else ""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return f"{plural(len(files), 'file')}{total}, fingerprint `{digest}` (of their names, sizes and hashes)"
