"""A run's model card: what the policy is, what it takes and gives, what was measured on it and what was not.

Whatever stands on it stands in the run's files, or follows from them; a card of a run without an evaluation says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwam import __version__
from lightwam.config.schema import DctConfig, HashedTextConfig, Recipe
from lightwam.data.codec import Codec
from lightwam.data.statistics import FeatureStats
from lightwam.encoders.weight_files import REPO
from lightwam.policy import run_directory
from lightwam.report.evidence import Evidence, Result, Score, Swap, num_values, read_evidence
from lightwam.report.formatting import counted, duration, millions, simulator
from lightwam.report.markdown import plain, table
from lightwam.sim.registry import robot_units
from lightwam.sim.simulator import RobotUnits
from lightwam.system.checked_json import Table, read_object

LICENSE = "apache-2.0"
"""lightwam's own, as the Hub spells it"""
PAPER = "https://arxiv.org/abs/2606.08242"


@dataclass(frozen=True)
class _Run:
    """What a card is written from."""

    recipe: Recipe
    codec: Codec
    evidence: Evidence
    step: int
    ema: bool
    num_values: int
    """numbers in what was trained"""
    num_frozen: int
    dataset: Table | None
    """dataset.json"""
    robot: RobotUnits | None
    repo: str
    license: str
    hub_dataset: str

    @property
    def name(self) -> str:
        """What the repo is called."""
        return self.repo.partition("/")[2]

    @property
    def weights(self) -> str:
        """The Hub repo of the pretrained weights that it needs; "" where they lay in a folder, or there are none."""
        given = self.recipe.weights
        return given if REPO.fullmatch(given) and not Path(given).exists() else ""

    @property
    def own(self) -> Result | None:
        """The evaluation, if it is one of these weights under their tasks' own sentences."""
        found = self.evidence.result
        if found is None or found.protocol.get("sentences"):
            return None
        return found if _protocol(found).count("checkpoint_step") == self.step else None


def model_card(
    run: Path, step: int | None = None, *, repo: str = "OWNER/NAME", license: str = LICENSE, dataset: str = ""
) -> str:
    """The card of a run's checkpoint (the newest by default), Markdown with the Hub's YAML on top.

    `repo` is what it will be called, `dataset` the Hub id of what it was trained on, where that is published.
    CheckpointError for what is no run, and for a broken file in it, naming the file.
    """
    evidence, place = read_evidence(run), run_directory.checkpoint_dir(run, step)
    frozen, data = run / run_directory.FROZEN, run / "dataset.json"
    facts = _Run(
        recipe=evidence.recipe,
        codec=run_directory.read_processing(run)[0],
        evidence=evidence,
        step=int(place.name.removeprefix("step_")),
        ema=(place / "ema.safetensors").is_file(),
        num_values=num_values(place / "model.safetensors"),
        num_frozen=num_values(frozen) if frozen.is_file() else 0,
        dataset=read_object(data) if data.is_file() else None,
        robot=_robot(evidence.recipe),
        repo=repo,
        license=license,
        hub_dataset=dataset,
    )
    parts = (_header, _summary, _use, _inputs, _success, _training, _unmeasured)
    return "\n".join(line for part in parts for line in (*part(facts), ""))


def _header(run: _Run) -> Iterator[str]:
    tags = ["robotics", "lightwam", "world-action-model", "imitation-learning", run.recipe.sim.name]
    yield "---"
    yield f"license: {json.dumps(run.license)}"
    yield "library_name: lightwam"
    yield "pipeline_tag: robotics"
    yield f"tags: {json.dumps(tags)}"
    if run.hub_dataset:
        yield f"datasets: {json.dumps([run.hub_dataset])}"
    if run.weights:
        yield f"base_model: {json.dumps(run.weights)}"
    if run.own:
        # every JSON value is one of YAML
        yield "model-index:"
        yield f"- name: {json.dumps(run.name)}"
        yield "  results:"
        for found in _index(run.own):
            yield f"  - {json.dumps(found, ensure_ascii=False)}"
    yield "---"


def _index(result: Result) -> Iterator[dict[str, Any]]:
    sim = _protocol(result).child("sim").text("name")
    rows = [("all", f"all {len(result.tasks)} tasks", result.score)] * (len(result.tasks) > 1)
    for config, words, score in [*rows, *((one.task, one.task, one.score) for one in result.tasks)]:
        metric = {"type": "success_rate", "name": f"success rate, {_told(score)}", "value": round(score.rate, 4)}
        yield {
            "task": {"type": "robotics", "name": "closed-loop control"},
            "dataset": {"type": sim, "name": f"{simulator(sim)}, {words}", "config": config},
            "metrics": [metric],
        }


def _summary(run: _Run) -> Iterator[str]:
    model, places = run.recipe.model, run.recipe.codec.places
    yield f"# {run.name}"
    yield (
        f"A World-Action Model of the [Light-WAM]({PAPER}) kind, trained with lightwam on the recipe "
        f"`{run.recipe.name}`. From {counted(len(places), 'present camera picture')}, {model.state_dim} numbers of "
        f"the robot's state and a sentence it gives the next {model.horizon} actions in one pass"
        + ("; it can also imagine what the cameras will see meanwhile." if model.video_loss_weight else ".")
    )
    yield ""
    if run.own:
        sim = simulator(_protocol(run.own).child("sim").text("name"))
        yield f"**Measured: {_told(run.own.score)} in {sim}, simulated.** Details and limits are below."
    else:
        yield "**Its success was not measured.** See below."
    if run.recipe.notes:
        yield ""
        yield plain(run.recipe.notes)


def _use(run: _Run) -> Iterator[str]:
    recipe, model, folder = run.recipe, run.recipe.model, f"runs/{run.name}"
    pretrained = not isinstance(recipe.latents, DctConfig)
    weights = f', weights="{run.weights or "path/to/wan2.1"}"' if pretrained else ""
    foresees = "\nvideo = policy.imagine(seen)  # a possible future: frames, height, width, RGB"
    imagine = foresees if model.video_loss_weight else ""
    pictures = ", ".join(f'"{place.camera}": picture' for place in recipe.codec.places)
    instruction = run.evidence.result.tasks[0].instruction if run.evidence.result else "what the robot is to do"
    yield f"""## Use
With lightwam {__version__} and its extra `hub` (`pip install 'lightwam[hub]'`):
```python
import numpy as np
from lightwam import Policy

policy = Policy.load("{run.repo}"{weights})
picture = np.zeros(({recipe.sim.height}, {recipe.sim.width}, 3), np.uint8)  # of a camera: height, width, RGB, upright
seen = {{
    "frames": {{{pictures}}},
    "state": np.zeros({model.state_dim}, np.float32),
    "instruction": {json.dumps(instruction, ensure_ascii=False)},
}}
chunk = policy.act(seen)  # {model.horizon} x {model.action_dim}: the next actions, in robot units{imagine}
```"""
    if pretrained:
        yield "It needs the pretrained Wan2.1 VAE that it was trained with (checked by digest), from the folder or Hub"
        yield "repo that `weights` names; for sentences that it was not trained on, the text encoder too."
    yield f"""To serve it to a robot, or to evaluate it again in its simulator:
```sh
hf download {run.repo} --local-dir {folder}
lightwam serve {folder}
lightwam eval {folder} --folder again
```"""


def _inputs(run: _Run) -> Iterator[str]:
    recipe, canvas = run.recipe, run.recipe.codec.canvas
    yield "## What it takes and gives"
    yield (
        f"**Cameras**, uint8 RGB of any size. Each is cropped and resized onto one canvas of {canvas[0]} x {canvas[1]} "
        f"pixels. The recipe's simulator draws them at {recipe.sim.height} x {recipe.sim.width}."
    )
    yield from table(
        ("camera", "part used: rows", "columns", "resized to"),
        [
            (f"`{place.camera}`", _span(place.crop[0], place.crop[2]), _span(place.crop[1], place.crop[3]),
             f"{place.height} x {place.width}")
            for place in recipe.codec.places
        ],
    )  # fmt: skip
    for title, stats, units in (
        ("State", run.codec.state, run.robot.state if run.robot else {}),
        ("Action", run.codec.action, run.robot.action if run.robot else {}),
    ):
        known = "" if units else " Their names and units are not in the run's files."
        yield ""
        yield f"**{title}**, {counted(stats.dim, 'number')}, in the units of the training data.{known}"
        yield from _ranges(stats, units)
    yield ""
    yield " ".join(_times(run))


def _ranges(stats: FeatureStats, units: Mapping[str, str]) -> Iterator[str]:
    """What lay in the training data, a dimension a row."""
    spans = zip(stats.min, stats.q01, stats.q50, stats.q99, stats.max, strict=True)
    rows = [[str(dim), *(f"{value:.4g}" for value in span)] for dim, span in enumerate(spans)]
    if units:
        rows = [[row[0], plain(name), unit, *row[1:]] for (name, unit), row in zip(units.items(), rows, strict=True)]
    heads = ("dim", *(("name", "unit") if units else ()), "least", "1 %", "median", "99 %", "most")
    yield from table(heads, rows, range(len(heads) - 5, len(heads)))


def _times(run: _Run) -> Iterator[str]:
    recipe, probe = run.recipe, run.evidence.probe
    rate = probe.fps if probe else run.robot.steps_per_second / recipe.sim.action_repeat if run.robot else None
    repeat = f", of {recipe.sim.action_repeat} simulator steps each" if recipe.sim.action_repeat > 1 else ""
    told = f"{rate:.4g} control steps a second{repeat}." if rate else "The control rate is not in the run's files."
    yield f"**Time.** {told}"
    horizon, prefix = recipe.model.horizon, recipe.model.supervised_prefix
    limit = f", of which training supervised the first {prefix}: execute no more of it" if prefix < horizon else ""
    yield (
        f"A chunk is {horizon} steps{limit}. The recipe executes {recipe.eval.replan}, then asks again. Imagined "
        f"pictures are {counted(recipe.codec.video_stride, 'step')} apart, "
        f"{1 + horizon // recipe.codec.video_stride} with the present."
    )


def _success(run: _Run) -> Iterator[str]:
    yield "## Success in closed loop"
    result = run.evidence.result
    if result is None:
        yield "The run holds no evaluation: nobody has counted how often this policy succeeds."
        return
    protocol = _protocol(result)
    if run.own is None:
        yield "> **This says nothing of how these weights do their tasks.** It was measured"
        if (then := protocol.count("checkpoint_step")) != run.step:
            yield f"> on step {then:,}; here is step {run.step:,}."
        else:
            yield f"> with other sentences than the tasks' own: {plain(json.dumps(protocol.value('sentences')))}."
        yield ""
    scored = [(plain(one.task), plain(one.instruction), *_score(one.score)) for one in result.tasks]
    if len(result.tasks) > 1:
        scored.append(("**all**", "", *_score(result.score)))
    yield from table(("task", "told", "successes", "rate", "95 % interval"), scored, (2, 3, 4))
    yield ""
    yield " ".join(_how(result, protocol, run.recipe))
    yield ""
    yield "<details><summary>Every constant and version that the rates depend on</summary>"
    yield ""
    yield "```json"
    yield json.dumps(result.protocol, indent=1, ensure_ascii=False)
    yield "```"
    yield "</details>"
    if run.evidence.swap:
        yield ""
        yield _swapped(run.evidence.swap)


def _how(result: Result, protocol: Table, recipe: Recipe) -> Iterator[str]:
    sim, asked = protocol.child("sim"), protocol.child("eval")
    trials, first = asked.count("trials"), result.first_seed
    weights = "the average of the weights" if protocol.text("weights") == "ema" else "the last weights"
    yield (
        f"Simulated in {simulator(sim.text('name'))}, {counted(trials, 'episode')} a task, seeds {first:,} to "
        f"{first + trials - 1:,}, each at most {sim.count('max_steps')} control steps. {result.replan} steps of each "
        f"chunk were executed. Success counts {plain(protocol.text('success'))}. Intervals are Wilson's. Step "
        f"{protocol.count('checkpoint_step'):,}, {weights}, {plain(protocol.text('computes'))}. Demonstrations that "
        f"the recipe collects are of seeds from {recipe.collect.first_seed:,} up."
    )
    yield from (f"**Warning**: {plain(warning)}." for warning in result.warnings)
    if result.latency_ms:
        p50, p95, p99 = (f"{result.latency_ms[key]:.3g}" for key in ("p50", "p95", "p99"))
        yield (
            f"An answer, alone or to several simulators in a batch, took {p50} ms in the median, {p95} ms at the 95th "
            f"and {p99} ms at the 99th percentile, on the machine that evaluated."
        )


def _swapped(swap: Swap) -> str:
    return (
        f"Told another task's sentence, the policy succeeds at the scene's own task in {_told(swap.swapped)}, against "
        f"{_told(swap.right)} with the right one: how far it acts on what it is told, not on the picture alone."
    )


def _training(run: _Run) -> Iterator[str]:
    recipe = run.recipe
    train, backbone = recipe.train, recipe.model.backbone
    frozen = f", and {millions(run.num_frozen)} frozen" if run.num_frozen else ""
    average = f"; the average of the weights (decay {train.ema_decay:g}) acts" if run.ema else ""
    own = "trained from scratch" if not recipe.weights else "from pretrained Wan2.1"
    lora = f", LoRA of rank {backbone.lora_rank}" if backbone.lora_rank else ""
    latents = (
        f"{recipe.latents.channels} low frequencies of a block DCT (no weights)"
        if isinstance(recipe.latents, DctConfig)
        else "Wan2.1's video VAE"
    )
    text = "hashed words (no weights)" if isinstance(recipe.text, HashedTextConfig) else "UMT5"
    muon = f", Muon at {train.muon_learning_rate:g} for the backbone's matrices" if train.muon_learning_rate else ""
    yield "## Training"
    yield from table(
        ("", ""),
        [
            ("weights", f"{millions(run.num_values)} numbers trained{frozen}"),
            ("backbone", f"{backbone.num_blocks} blocks of width {backbone.width}, {own}{lora}"),
            ("pictures, text", f"{latents}; {text}"),
            ("steps", f"{run.step:,} of {train.steps:,}, {train.batch_size} windows each{average}"),
            ("optimiser", f"AdamW at {train.learning_rate:g} at most{muon}; {train.precision}; seed {train.seed}"),
            ("loss", f"{recipe.model.action_loss_weight:g} action + {recipe.model.video_loss_weight:g} video"),
            ("statistics", f"of {run.codec.action.count:,} control steps; normalised by "
             f"{recipe.codec.state_norm} (state) and {recipe.codec.action_norm} (action)"),
            ("dataset", _dataset(run)),
            *_took(run.evidence),
        ],
    )  # fmt: skip


def _took(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """How long it trained, and on what, where `lightwam demo` noted it."""
    if evidence.machine and evidence.wall_seconds and "train" in evidence.wall_seconds:
        machine = Table(evidence.machine, "result.json: machine")
        on = f"{plain(machine.text('processor'))}, {counted(machine.count('cores'), 'core')}"
        yield "took", f"{duration(evidence.wall_seconds['train'])} on {on}"


def _dataset(run: _Run) -> str:
    name = f"[{run.hub_dataset}](https://huggingface.co/datasets/{run.hub_dataset}); " if run.hub_dataset else ""
    if run.dataset is None:
        return name + "the run's files hold no fingerprint of it"
    files = run.dataset.child("fingerprint").data
    sizes = [re.match(r"(\d+) bytes", str(told)) for told in files.values()]
    total = f", {sum(int(size[1]) for size in sizes if size) / 1e6:.4g} MB" if all(sizes) else ""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    return f"{name}{counted(len(files), 'file')}{total}, fingerprint `{digest}` (of their names, sizes and hashes)"


def _unmeasured(run: _Run) -> Iterator[str]:
    yield "## What was not measured"
    result = run.evidence.result
    if run.own is None:
        yield "- Success of these weights."
    if result is None:
        yield "- The time of an answer."
    else:
        yield "- Success on a real robot, in other simulators, on other tasks, from other cameras or in other words."
        yield "- The time of an answer on another machine" + (
            "; on that one, none was noted." if result.latency_ms is None else "."
        )
    if run.evidence.swap is None:
        yield "- Whether it reads the sentence: success when told another task's."
    yield f"- How much another training would differ: this is one, of seed {run.recipe.train.seed}."
    yield "- Safety. It knows nothing of people, limits or collisions: what drives a robot must see to them."


def _robot(recipe: Recipe) -> RobotUnits | None:
    """The robot of the recipe's simulator; None when it is unknown, or of other sizes than the model."""
    robot = robot_units(recipe.sim.name)
    sizes = recipe.model.state_dim, recipe.model.action_dim
    return robot if robot and (len(robot.state), len(robot.action)) == sizes else None


def _protocol(result: Result) -> Table:
    return Table(result.protocol, "eval/result.json: protocol")


def _score(score: Score) -> tuple[str, str, str]:
    low, high = score.interval
    return f"{score.successes} of {score.trials}", f"{100 * score.rate:.3g} %", f"{100 * low:.0f} to {100 * high:.0f} %"


def _told(score: Score) -> str:
    successes, rate, interval = _score(score)
    return f"{successes} episodes ({rate}, 95 % interval {interval})"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.3g} to {100 * high:.3g} %"
