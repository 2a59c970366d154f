"""Running the sections: each figure is a line of JSON, written as soon as it is measured."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightwam.config.checks import check_recipe
from lightwam.config.schema import Recipe
from lightwam.errors import ConfigError
from lightwam.evaluation.gpu_figures.clocks import Clocks
from lightwam.evaluation.gpu_figures.setup import Figure, Setup
from lightwam.system.devices import resolve_device
from lightwam.system.files import append_line, explain_disk_errors

SECTIONS = ("env", "ceilings", "act", "train", "cache", "sdpa", "serve", "tests", "capture")
"""modules of this package with `figures(setup)`; capture is last, as it may break the CUDA context"""
FIGURES = "figures.jsonl"
TRACEBACK = 2000
"""characters of a traceback that are kept"""


def measure(
    recipe: Recipe,
    *,
    device: str = "auto",
    out: Path = Path("gpu"),
    only: Sequence[str] = (),
    minutes: float = 9.0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure all sections, or those of `only`, and write OUT/figures.jsonl; returns its last line, a summary.

    A figure that fails is written with its error, and the next one follows. Once `minutes` have passed no figure is
    begun; the summary names those that were left out.
    """
    check_recipe(recipe)
    check_sections(only)
    target, began = resolve_device(device), time.perf_counter()
    setup = Setup(recipe, target, out, began + 60 * minutes)
    with explain_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if (path := out / FIGURES).exists():
        raise ConfigError("--out must be a folder without figures", got=path, next_step="choose another --out")
    summary: dict[str, Any] = {"section": "summary", "failed": [], "left_out": []}

    def write(line: Mapping[str, Any]) -> None:
        append_line(path, json.dumps(line, allow_nan=False))

    with Clocks(target) as clocks:
        for section in only or SECTIONS:
            for name, figure in _figures(section, setup).items():
                if setup.seconds_left <= 0:
                    summary["left_out"].append(f"{section}: {name}")
                    continue
                started = time.perf_counter()
                clocks.restart()
                result = _result(figure)
                say(f"{section}: {name}: {result.get('error', result.get('skipped', 'measured'))}")
                if "error" in result:
                    summary["failed"].append(f"{section}: {name}")
                about = {"took_s": time.perf_counter() - started, "clocks": clocks.seen()}
                write({"section": section, "figure": name, **result, **about})
            gc.collect()
            if target.type == "cuda":
                with contextlib.suppress(RuntimeError):  # of a broken context: some sections have their own process
                    torch.cuda.empty_cache()
    summary["took_s"] = time.perf_counter() - began
    write(summary)
    return summary


def check_sections(only: Sequence[str]) -> None:
    """Raise ConfigError for a name that is no section."""
    if unknown := [name for name in only if name not in SECTIONS]:
        raise ConfigError("--only must name sections", got=", ".join(unknown), expected=", ".join(SECTIONS))


def _figures(section: str, setup: Setup) -> Mapping[str, Figure]:
    """Return the figures of a section; if it cannot be loaded, one that fails with the reason."""
    try:
        return importlib.import_module(f"{__package__}.{section}").figures(setup)
    except Exception as error:
        found = error  # Python deletes the name `error`

        def fail() -> Mapping[str, Any]:
            raise found

        return {"all figures": fail}


def _result(figure: Figure) -> dict[str, Any]:
    """Return what a figure returns; of one that fails, or has a number that is not finite, its error."""
    try:
        result = dict(figure())
        json.dumps(result, allow_nan=False)
        return result
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"error": message, "traceback": traceback.format_exc()[-TRACEBACK:]}


def table(summary: Mapping[str, Any]) -> str:
    """Return the summary as text."""
    lines = [f"measured in {summary['took_s']:.0f} s"]
    for kind, what in (("failed", "failed"), ("left_out", "left out, as the time was over")):
        if summary[kind]:
            lines.append(f"  {what}: {', '.join(summary[kind])}")
    return "\n".join(lines)
