"""Latency without a simulator: chunks that arrive late, played along recorded episodes by the robot's own player.

It measures how old the actions are and what that costs in error and smoothness. It cannot measure success, and a player
that waits for its answers cannot be compared, because a recording does not wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from lightwam.config.commands import ControlSettings
from lightwam.errors import ConfigError
from lightwam.evaluation.open_loop import predict, replayed
from lightwam.evaluation.open_loop_text import mean_moved
from lightwam.evaluation.recorded import recorded_episodes
from lightwam.evaluation.rehearsal import latency_steps
from lightwam.evaluation.replay import smoothness, switch_dims
from lightwam.policy.policy import Policy
from lightwam.robot.chunks import Crossfade, Ensemble
from lightwam.robot.player import Play
from lightwam.system.machine import versions
from lightwam.system.progress import Say
from lightwam.system.tables import table_lines


def bench_recorded_control(policy: Policy, settings: ControlSettings, replan: int, say: Say = print) -> dict[str, Any]:
    """Play the policy's chunks on the episodes it held out at every latency, in each way of joining chunks.

    Returns plain JSON values, see `table`. ConfigError for other rates than the dataset's, which cannot be replayed.
    """
    recorded = recorded_episodes(policy, say=say)
    if set(settings.rates_hz) - {recorded.fps}:
        what, expected = "recorded episodes have one rate", f"{recorded.fps:g}, or nothing"
        raise ConfigError(what, where="--rates-hz", got=settings.rates_hz, expected=expected)
    names = recorded.episodes[0].dataset.action_names
    switches = switch_dims(policy.codec.config, tuple(names))
    predicted, actions = predict(policy, recorded, say), [each.action for each in recorded.episodes]
    taught = [each.taught for each in recorded.episodes]
    rows = []
    for latency_ms, (way, play) in product(settings.latencies_ms, _plays(replan, settings, switches).items()):
        late = latency_steps(latency_ms, recorded.fps)
        measured = smoothness(replayed(recorded, predicted, play, late), actions, switches, taught)
        rows.append(
            {
                "latency_ms": latency_ms,
                "latency_steps": late,
                "way": way,
                "age_steps": measured.age,
                "error": float(measured.error.mean()),
                "jump": mean_moved(measured.jump.tolist(), switches),
                "recorded_jump": mean_moved(measured.recorded_jump.tolist(), switches),
                "jitter": measured.jitter,
                "held_share": measured.held,
            }
        )
    return {
        "recipe": policy.recipe.name,
        "held_out": recorded.held_out,
        "episodes": [each.index for each in recorded.episodes],
        "fps": recorded.fps,
        "horizon": policy.recipe.model.supervised_prefix,
        "replan": replan,
        "rows": rows,
        "versions": versions(),
    }


def _plays(replan: int, settings: ControlSettings, switches: tuple[int, ...]) -> Mapping[str, Play]:
    """Return the ways of playing, each the one before plus something, as `rehearsal.player_factories` has them."""
    return {
        "asynchronous": Play(replan, switch_dims=switches, compensate=False),
        "+ compensation": Play(replan, switch_dims=switches),
        f"+ blend {settings.blend}": Play(replan, Crossfade(settings.blend), switches),
        f"+ ensemble {settings.decay:g}": Play(1, Ensemble(settings.decay), switches),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    rows = [["latency", "", "age", "error", "jump", "recorded", "jitter", "held"]]
    for row in result["rows"]:
        latency = f"{row['latency_ms']:g} ms = {row['latency_steps']}"
        numbers = (f"{row[name]:.3g}" for name in ("error", "jump", "recorded_jump"))
        rows.append(
            [
                latency,
                row["way"],
                f"{row['age_steps']:.1f}",
                *numbers,
                f"{row['jitter']:.2f}",
                f"{row['held_share']:.0%}",
            ]
        )
    what = "held-out" if result["held_out"] else "training"
    lines = [
        f"{result['recipe']}: {len(result['episodes'])} {what} episodes at {result['fps']:g} Hz; chunks of "
        f"{result['horizon']}, a new one every {result['replan']} steps",
        *table_lines(rows, "><>", indent=0),
        "age: control steps since what the action was predicted from was seen; error: mean absolute difference to the "
        "recorded action; jump: change of the command to a new chunk, and the recording's there; jitter: RMS of the "
        "second difference, relative to the recording's; success needs a simulator",
    ]
    return "\n".join(lines)
