"""The result of `open_loop` as tables and as a verdict in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lightwam.system.tables import table_lines

LEARNED, LITTLE = 0.5, 0.9
"""error of the policy, as a share of the better baseline's, up to which it learned, and learned a little"""
READS, IGNORES = 1.25, 1.05
"""error with another sentence, as a multiple of that with its own, from which it reads, and below which it does not"""
AS_GOOD = 1.25
"""ways of playing whose error is within this factor of the least count as equally good, and the smoothest is named"""
ROUGH = 2.0
"""a chunk's border is rough where the command changes by this multiple of what was recorded there, and a way of playing
whose jitter is this multiple of the recording's"""


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Return what the numbers say, a sentence each."""
    lines = [_learned(result), _first_action(result), _reads(result), _borders(result), _best(result)]
    if not result["held_out"]:
        lines.insert(0, "Measured on episodes that it was trained on: this says nothing about new ones.")
    return lines


def _learned(result: Mapping[str, Any]) -> str:
    error, hold, repeat = (result["overall"][name] for name in ("policy", "hold", "repeat"))
    share = error / max(min(hold, repeat), 1e-12)
    baselines = f"holding still {_number(hold)}, repeating the last action {_number(repeat)}"
    beside = f"error {_number(error)} {common_unit(result['units'])}".rstrip() + f", {baselines}"
    if share <= LEARNED:
        return f"It learned: {beside}."
    if share <= LITTLE:
        return f"It learned a little: {beside}."
    return f"It is not better than {'holding still' if hold < repeat else 'repeating the last action'}: {beside}."


def _first_action(result: Mapping[str, Any]) -> str:
    error, repeat = result["first_step"]["policy"], result["first_step"]["repeat"]
    how = "no worse than" if error <= repeat else "worse than"
    return f"A chunk's first action is {how} repeating the last one: {_number(error)} and {_number(repeat)}."


def _reads(result: Mapping[str, Any]) -> str:
    sentences = result["sentences"]
    if sentences is None:
        return "There is one sentence, so it cannot be told whether it reads it."
    own, other = sentences["own"], sentences["other"]
    ratio, beside = other / max(own, 1e-12), f"error {_number(own)} with its own, {_number(other)} with another one"
    if ratio >= READS:
        return f"It reads the sentence: {beside}."
    if ratio <= IGNORES:
        return f"It does not read the sentence, or the pictures alone tell the tasks apart: {beside}."
    return f"It hardly reads the sentence: {beside}."


def _borders(result: Mapping[str, Any]) -> str:
    row = next((row for row in result["replays"] if row["replan"] == result["replan"]), result["replays"][0])
    jump, recorded = (mean_moved(row[name], result["switch_dims"]) for name in ("jump", "recorded_jump"))
    how = "jumps" if jump > ROUGH * recorded else "is smooth"
    return (
        f"At a new chunk the command {how}: it changes by {_number(jump)} on average, {_number(recorded)} in the "
        f"recording (replan {row['replan']}, joined at once)."
    )


def best_way(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the smoothest of the replays whose error is within AS_GOOD of the least.

    Those whose jitter is more than ROUGH times the recording's do not count; None if none is left.
    """
    smooth = [row for row in result["replays"] if row["jitter"] <= ROUGH]
    least = min((np.mean(row["error"]) for row in smooth), default=0.0)
    good = [row for row in smooth if np.mean(row["error"]) <= AS_GOOD * least]
    return min(good, key=lambda row: float(row["jitter"]), default=None)


def _best(result: Mapping[str, Any]) -> str:
    if (row := best_way(result)) is not None:
        return f"Try first: {_way(row)}."
    row = min(result["replays"], key=lambda row: float(row["jitter"]))
    return f"No way of playing is smooth: the least jitter is that of {_way(row)}."


def _way(row: Mapping[str, Any]) -> str:
    error = _number(float(np.mean(row["error"])))
    jitter = f"jitter {_number(row['jitter'])} times the recording's"
    return f"replan {row['replan']}, {row['joining']} (error {error}, {jitter})"


def tables(result: Mapping[str, Any]) -> str:
    """Return the result as text."""
    names = [f"{name} ({unit})" if unit else name for name, unit in zip(result["names"], result["units"], strict=True)]
    what = "held-out" if result["held_out"] else "training"
    heading = (
        f"{len(result['episodes'])} {what} episodes of {result['dataset']}, {result['windows']} chunks: mean absolute "
        "error beside holding still and repeating the last action"
    )
    parts = [
        [heading],
        _errors_by(names, result["by_dim"], result["overall"]),
        _errors_by_step(result),
        _replays(result),
    ]
    return "\n".join([*("\n".join(part) + "\n" for part in parts), *result["verdict"]])


def _errors_by(names: Sequence[str], errors: Mapping[str, Sequence[float]], overall: Mapping[str, float]) -> list[str]:
    rows = [["", "policy", "hold", "repeat"]]
    for dim, name in enumerate(names):
        rows.append([name, *(_number(errors[key][dim]) for key in ("policy", "hold", "repeat"))])
    rows.append(["all", *(_number(overall[key]) for key in ("policy", "hold", "repeat"))])
    return table_lines(rows, indent=0)


def _errors_by_step(result: Mapping[str, Any]) -> list[str]:
    """Return the errors at the first, the last and some other steps of the chunk."""
    horizon = len(result["counts"])
    steps = sorted({0, *(max(0, horizon * part // 4 - 1) for part in (1, 2, 3, 4))})
    rows = [["step of the chunk", *(str(step + 1) for step in steps)]]
    rows += [[name, *(_number(result["by_step"][name][step]) for step in steps)] for name in result["by_step"]]
    return table_lines(rows, indent=0)


def _replays(result: Mapping[str, Any]) -> list[str]:
    rows = [["replan", "chunks joined", "error", "jump at a new chunk", "recorded there", "jitter"]]
    for row in result["replays"]:
        jumps = (_number(mean_moved(row[name], result["switch_dims"])) for name in ("jump", "recorded_jump"))
        rows.append(
            [f"{row['replan']}", row["joining"], _number(float(np.mean(row["error"]))), *jumps, f"{row['jitter']:.2f}"]
        )
    return table_lines(rows, "><>", indent=0)


def mean_moved(values: Sequence[float], switch_dims: Collection[int]) -> float:
    """Return the mean over the dimensions that are no switches; over all if there is no other."""
    kept = [value for dim, value in enumerate(values) if dim not in switch_dims]
    return float(np.mean(kept or values))


def common_unit(units: Sequence[str]) -> str:
    """Return the unit of all numbers of the action; "" if they have several, or it is unknown."""
    return units[0] if len(set(units)) == 1 else ""


def _number(value: float) -> str:
    return f"{value:.3g}"
