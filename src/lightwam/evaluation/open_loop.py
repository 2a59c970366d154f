"""Open loop: a policy's chunks on recorded episodes that it was not trained on, against what was recorded there.

It needs no simulator. It says whether a policy learned, whether it reads its instruction, how it should be played, and
nothing about drift: what the policy does never changes what it sees next.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from lightwam.config.commands import OpenLoopSettings
from lightwam.config.schema import CodecConfig
from lightwam.errors import ConfigError, DatasetError
from lightwam.evaluation.open_loop_text import verdict
from lightwam.evaluation.recorded import Recorded, recorded_episodes
from lightwam.evaluation.replay import Replayed, replay, smoothness, switch_dims, ways
from lightwam.evaluation.result_files import write_arrays
from lightwam.policy.chunk_errors import RecordedWindows, chunk_errors, state_dims, windows_of
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import write_json
from lightwam.robot.player import Play
from lightwam.system.cpu import keep_memory
from lightwam.system.machine import versions
from lightwam.system.progress import Progress, Say
from lightwam.types import Observation

RESULT, ARRAYS = Path("eval") / "open_loop.json", Path("eval") / "open_loop.npz"
"""in a run directory"""
BATCH = 8
"""observations"""
MAX_OTHER = 256
"""moments at which the policy is told another sentence, at most"""


@dataclass(frozen=True, eq=False)
class Predicted:
    """A policy's chunks along recorded episodes, in robot units."""

    chunks: Float32[np.ndarray, "N H A"]
    """at each control step; the steps of a chunk that training supervised"""
    other_at: Int64[np.ndarray, " M"]
    """control steps at which the policy was also told another sentence"""
    other: Float32[np.ndarray, "M H A"]


def evaluate_open_loop(
    run: Path | str,
    settings: OpenLoopSettings | None = None,
    *,
    policy: Policy | None = None,
    dataset: Path | str | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Measure a run's policy on the episodes it held out; write RUN/eval/open_loop.json and .npz, return the former.

    `dataset`: measure on all episodes of this one, which the run must not have been trained on. The result is plain
    JSON values: errors, baselines, replays and a verdict in words; `open_loop_text.tables` prints it. ConfigError for
    settings out of range, DatasetError and CheckpointError as `recorded_episodes`.
    """
    began, run, settings = time.monotonic(), Path(run), settings or OpenLoopSettings()
    keep_memory()
    policy = policy or Policy.load(run)
    replans = _replans(settings, policy)
    recorded = recorded_episodes(policy, dataset, settings.most_steps, say)
    predicted = predict(policy, recorded, say)
    result = measure(policy, recorded, predicted, settings, replans)
    result |= {"wall_seconds": time.monotonic() - began, "versions": versions()}
    write_arrays(run / ARRAYS, _plots(policy, recorded, predicted))
    write_json(run / RESULT, result)
    return result


def predict(policy: Policy, recorded: Recorded, say: Say = print) -> Predicted:
    """Predict a chunk at every control step; at some of them, evenly spaced, another one from another sentence."""
    chunks, others = [], []
    other_at = np.unique(np.linspace(0, recorded.num_steps - 1, MAX_OTHER).round().astype(np.int64))
    other_at = other_at if len(recorded.sentences) > 1 else other_at[:0]
    asked, step = set(other_at.tolist()), 0
    with Progress("open loop", recorded.num_steps, unit="step", say=say) as progress:
        for episode in recorded.episodes:
            seen = episode.observations(policy.cameras)
            while batch := list(islice(seen, BATCH)):
                chunks.append(policy.act_batch(batch))
                told = [another(seen_, recorded.sentences) for i, seen_ in enumerate(batch) if step + i in asked]
                others += [policy.act_batch(told)] if told else []
                step += len(batch)
                progress.advance(count=len(batch))
    prefix = policy.recipe.model.supervised_prefix
    return Predicted(np.concatenate(chunks)[:, :prefix], other_at, np.concatenate([chunks[0][:0], *others])[:, :prefix])


def another(observation: Observation, sentences: Sequence[str]) -> Observation:
    """Return the observation with the sentence that follows its own in `sentences`."""
    after = sentences.index(observation.instruction) + 1 if observation.instruction in sentences else 0
    return replace(observation, instruction=sentences[after % len(sentences)])


def measure(
    policy: Policy, recorded: Recorded, predicted: Predicted, settings: OpenLoopSettings, replans: Sequence[int]
) -> dict[str, Any]:
    """Return the errors, the replays and the verdict as plain JSON values."""
    first, codec = recorded.episodes[0].dataset, policy.codec.config
    names, starts = tuple(first.action_names), recorded.episode_start
    targets = state_dims(codec, first.state_names if policy.recipe.model.state_dim else (), names)
    episodes, prefix = range(len(recorded.episodes)), predicted.chunks.shape[1]
    taught = recorded.taught
    windows = windows_of(recorded.state, recorded.action, starts, episodes, prefix, recorded.num_steps, taught=taught)
    if not len(windows.start):
        what, got = "an episode must have a step to measure, after its first one", f"none in {len(episodes)} episodes"
        raise DatasetError(what, where=first.root, got=got, next_step="--dataset with another one")
    errors = chunk_errors(predicted.chunks[windows.start], windows, codec, targets)
    switches = switch_dims(codec, names)
    units = policy.facts.units if policy.facts else ()
    result = {
        "policy": policy.identity(),
        "dataset": first.root.resolve().name,
        "held_out": recorded.held_out,
        "episodes": [each.index for each in recorded.episodes],
        "windows": len(windows.start),
        "fps": recorded.fps,
        "replan": policy.recipe.eval.replan,
        "names": list(names),
        "units": list(units) or [""] * len(names),
        "switch_dims": list(switches),
        "overall": errors.overall(),
        "first_step": errors.first_step(),
        "by_step": {name: values.tolist() for name, values in errors.by_step().items()},
        "by_dim": {name: values.tolist() for name, values in errors.by_dim().items()},
        "counts": errors.count.tolist(),
        "sentences": _sentences(recorded, predicted, windows, codec, targets),
        "replays": [
            {"replan": replan, "joining": joining, **_row(recorded, predicted, play, switches)}
            for (replan, joining), play in ways(replans, settings.blend, settings.decay, switches).items()
        ],
    }
    return result | {"verdict": verdict(result)}


def replayed(recorded: Recorded, predicted: Predicted, play: Play, latency: int = 0) -> list[Replayed]:
    """Return every episode as the player would have commanded it, answers `latency` control steps late."""
    spans = pairwise(recorded.episode_start.tolist())
    return [replay(predicted.chunks[begin:end], play, latency) for begin, end in spans]


def _row(recorded: Recorded, predicted: Predicted, play: Play, switches: tuple[int, ...]) -> dict[str, Any]:
    episodes = replayed(recorded, predicted, play)
    taught = [each.taught for each in recorded.episodes]
    values = smoothness(episodes, [each.action for each in recorded.episodes], switches, taught)
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(values).items()}


def _sentences(
    recorded: Recorded, predicted: Predicted, windows: RecordedWindows, codec: CodecConfig, targets: Mapping[int, int]
) -> dict[str, Any] | None:
    """Return the errors with the episodes' own and with another sentence at the same moments; None if there is none."""
    both, ours, theirs = np.intersect1d(windows.start, predicted.other_at, return_indices=True)
    if not len(both):
        return None
    some = RecordedWindows(**{name: values[ours] for name, values in vars(windows).items()})
    own, other = (
        chunk_errors(chunks, some, codec, targets) for chunks in (predicted.chunks[both], predicted.other[theirs])
    )
    return {
        "windows": len(both),
        "own": own.overall()["policy"],
        "other": other.overall()["policy"],
        "own_by_dim": own.by_dim()["policy"].tolist(),
        "other_by_dim": other.by_dim()["policy"].tolist(),
    }


def _replans(settings: OpenLoopSettings, policy: Policy) -> list[int]:
    """Return the replans to compare: the quarters of the supervised prefix and the recipe's own, by default."""
    most, own = policy.recipe.model.supervised_prefix, policy.recipe.eval.replan
    replans = sorted({*settings.replan} or {own, *(max(1, most * part // 4) for part in (1, 2, 3, 4))})
    if not 1 <= replans[0] <= replans[-1] <= most:
        expected = f"1 to {most}, the steps that training supervised"
        raise ConfigError("replan is out of range", where="--replan", got=replans, expected=expected)
    return replans


def _plots(policy: Policy, recorded: Recorded, predicted: Predicted) -> dict[str, Any]:
    """Return what the report draws: the recorded episodes, and the chunks at each `replan` steps."""
    spans = list(pairwise(recorded.episode_start.tolist()))
    starts = np.concatenate([np.arange(begin, end, policy.recipe.eval.replan) for begin, end in spans])
    return {
        "episodes": np.array([each.index for each in recorded.episodes]),
        "instructions": np.array([each.instruction for each in recorded.episodes]),
        "episode_start": recorded.episode_start,
        "action": recorded.action,
        "chunk_start": starts,
        "chunks": predicted.chunks[starts],
    }
