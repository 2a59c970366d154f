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
from typing import Any

from lightwam import __version__
from lightwam.config.schema import Recipe
from lightwam.config.strict_json import added
from lightwam.data.codec import Codec
from lightwam.evaluation.result_files import Count, Protocol, read_part
from lightwam.policy import run_directory
from lightwam.policy.tensor_files import num_values
from lightwam.report.evidence import DatasetRecord, EvaluationResult, Evidence, SuccessRate, read_evidence
from lightwam.report.formatting import render, simulator_title
from lightwam.report.open_loop import OpenLoopResult
from lightwam.sim.registry import robot_units
from lightwam.sim.simulator import RobotUnits
from lightwam.system.hub import REPO, hub_errors
from lightwam.system.tables import plural

Units = Mapping[str, str]
"""name -> unit"""
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
        """The evaluation, if it was of these weights with the tasks' own instructions, and nothing was disturbed."""
        protocol = self.protocol
        if protocol is None or protocol.checkpoint_step != self.step:
            return None
        return None if protocol.sentences or protocol.what_is_disturbed else self.evidence.result

    @property
    def steps_per_second(self) -> float | None:
        """Control steps per second, None when the run's files do not say."""
        if self.evidence.probe:
            return self.evidence.probe.fps
        if self.robot:
            return self.robot.steps_per_second / self.recipe.simulation.action_repeat
        return self.evidence.facts.fps if self.evidence.facts else None

    @property
    def units(self) -> tuple[Units, Units]:
        """Units of state and action by name, the simulator's or the dataset's; empty where the names are not known."""
        if self.robot:
            return self.robot.state, self.robot.action
        if not self.evidence.facts:
            return {}, {}
        facts = self.evidence.facts
        action = dict(zip(facts.action_names, facts.units or [""] * len(facts.action_names), strict=True))
        state = {name: action.get(name, "") for name in facts.state_names}
        return (
            state if len(state) == self.codec.state.dim else {},
            action if len(action) == self.codec.action.dim else {},
        )

    @property
    def open_loop(self) -> OpenLoopResult | None:
        """The errors on recorded episodes, if they are of these weights."""
        found = self.evidence.open_loop
        return found.result if found and found.result.policy.get("checkpoint_step") == self.step else None

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
    """Return the card of a run's checkpoint (by default that of `default_step`): Markdown, with the Hub's YAML on top.

    `repo` is the name that it will get, `dataset` the Hub id of the dataset that it was trained on, if that is public.
    CheckpointError without the `hub` extra, for a directory that is no run, and for a broken file, naming it.
    """
    evidence, folder = read_evidence(run), run_directory.checkpoint_dir(run, step)
    frozen, result, recipe = run / run_directory.FROZEN, evidence.result, evidence.recipe
    robot = robot_units(recipe.sim.name) if recipe.sim else None
    sizes = recipe.model.state_dim, recipe.model.action_dim
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
        facts=evidence.facts,
        measured=card.open_loop,
        features=[("State", card.codec.state, card.units[0]), ("Action", card.codec.action, card.units[1])],
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
    own = card.recipe.sim.name if card.recipe.sim else card.evidence.facts.robot if card.evidence.facts else ""
    sim = card.protocol.sim.name if card.protocol else own
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
    if measured := card.open_loop if card.recipe.sim is None else None:
        results.append(_open_loop_result(measured, EvalResult))
    data = ModelCardData(
        license=card.license,
        library_name="lightwam",
        pipeline_tag="robotics",
        tags=["robotics", "lightwam", "world-action-model", "imitation-learning", *([own] if own else [])],
        datasets=[card.hub_dataset] if card.hub_dataset else None,
        base_model=card.weights or None,
        model_name=card.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _open_loop_result(measured: OpenLoopResult, kind: Any) -> Any:
    """Return the error on recorded episodes as the Hub's `kind` of result."""
    which = "held-out" if measured.held_out else "training"
    return kind(
        task_type="robotics",
        task_name="open-loop action prediction",
        dataset_type=measured.dataset,
        dataset_name=f"{measured.dataset}, {plural(len(measured.episodes), f'{which} episode')}",
        metric_type="mae",
        metric_name=f"mean absolute error of chunks{f', {measured.unit}' if measured.unit else ''}",
        metric_value=round(measured.overall["policy"], 4),
    )


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
