"""Evaluation with the tasks' sentences exchanged: a policy that reads its instruction must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lightwam.config.schema import EvalConfig
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.evaluate import evaluate
from lightwam.evaluation.result_files import Count, Protocol, read_object, read_part
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import read_recipe, write_json
from lightwam.sim import registry

TRIALS = 5
"""episodes a task, at most"""
COUNTS = ("successes", "trials")


@dataclass(frozen=True, kw_only=True)
class SwapProtocol(Protocol):
    """The constants of the evaluation to compare with."""

    checkpoint_step: Count


def swap_sentences(run: Path, say: Callable[[str], None] = print) -> None:
    """Evaluate with the next task's sentence in place of each task's own, and write RUN/eval/swap.json.

    Otherwise settings and checkpoint are those of the evaluation in RUN/eval. CheckpointError without that evaluation,
    ConfigError if all tasks have one sentence.
    """
    path = run / "eval" / "result.json"
    if not path.exists():
        raise CheckpointError("there is no evaluation to compare with", where=path, next_step=f"lightwam eval {run}")
    right = read_object(path)
    protocol = read_part(SwapProtocol, right.get("protocol"), f"{path}.protocol")
    sim, settings = protocol.sim, to_dict(read_recipe(run).eval) | dict(protocol.eval) | {"disturb": protocol.disturb}
    settings = from_dict(EvalConfig, settings, f"{path}.protocol.eval")
    others = zip(sim.tasks, sim.tasks[1:] + sim.tasks[:1], strict=True)
    sentences = {task: registry.make_simulator(sim, other).instruction for task, other in others}
    if len(set(sentences.values())) < 2:
        raise ConfigError("sentences can be exchanged among several tasks only", where=path, got=sim.tasks)
    swapped = evaluate(
        run,
        replace(settings, trials=min(TRIALS, settings.trials), videos_per_task=0),
        sim=sim,
        policy=Policy.load(run, protocol.checkpoint_step, device="auto"),
        folder="swap",
        sentences=sentences,
        say=say,
    )
    results = {"right": right, "swapped": swapped}
    totals = {name: {key: result[key] for key in COUNTS} for name, result in results.items()}
    tasks = {
        task: {name: {key: result["tasks"][task][key] for key in COUNTS} for name, result in results.items()}
        | {"swapped_instruction": sentences[task]}
        for task in sim.tasks
    }
    write_json(run / "eval" / "swap.json", totals | {"tasks": tasks})
