"""docs/results/gpu.md, made from the files that `lightwam bench gpu` writes; templates/gpu.md has its text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightwam.errors import ConfigError
from lightwam.report.formatting import one_line, render
from lightwam.system.files import complete_lines

Line = Mapping[str, Any]
"""a figure, as `lightwam.evaluation.gpu_figures.measure` writes it"""
CALLS = "calls after warm-up"


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Aim:
    """A number that the project wants, and where it is measured."""

    what: str
    least: bool
    """it must be at least as large; else at most"""
    limits: Mapping[str, float]
    """part of a GPU's name -> the limit"""
    section: str
    figure: str
    read: Callable[[Line], float]


def _complete(line: Line, number: str) -> float:
    return line["stages"]["camera bytes to robot units"]["engine"][number]


BOTH = ("H100", "H200")
STEP, ROBOT = ("train", "16 samples"), ("act", "one robot")
AIMS = (
    Aim("engine, camera bytes to robot units, p50 ms", False, dict.fromkeys(BOTH, 5.0), *ROBOT,
        lambda line: _complete(line, "p50_ms")),
    Aim("the same, p99 ms", False, dict.fromkeys(BOTH, 6.0), *ROBOT, lambda line: _complete(line, "p99_ms")),
    Aim("engine, peak GiB", False, dict.fromkeys(BOTH, 3.0), *ROBOT, lambda line: line["peak_memory_gib"]),
    Aim("training, 16 samples at a time, samples/s", True, {"H100": 90.0, "H200": 110.0}, *STEP,
        lambda line: line["samples_per_second"]["packed"]),
    Aim("the same, times the plain step's", True, dict.fromkeys(BOTH, 1.5), *STEP, lambda line: 1 / line["ratio"]),
    Aim("the same, peak GiB", False, dict.fromkeys(BOTH, 28.0), *STEP, lambda line: line["peak_gib"]["packed"]),
    Aim("latent cache, windows/s", True, dict.fromkeys(BOTH, 25.0), "cache", "as lightwam cache",
        lambda line: line["windows_per_second"]),
)  # fmt: skip
"""at the paper's sizes"""


class Run:
    """The figures of one file."""

    def __init__(self, path: Path) -> None:
        """Read a file; ConfigError if it has no figures of a GPU."""
        try:
            lines: list[Line] = [json.loads(text) for text in complete_lines(path)]
            self.lines = {(line["section"], line["figure"]): line for line in lines if "figure" in line}
            self.machine = self.lines["env", "machine"]
            self.gpu: str = self.machine["machine"]["gpu"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            what, step = "the file must have a GPU's figures", "lightwam bench gpu, on a machine with a GPU"
            raise ConfigError(what, where=path, got=repr(error), next_step=step) from error
        self.left_out = [name for line in lines for name in line.get("left_out", ())]

    def of(self, section: str) -> dict[str, Line]:
        """Return the figures of a section that were measured."""
        found = {figure: line for (part, figure), line in self.lines.items() if part == section}
        return {figure: line for figure, line in found.items() if "error" not in line and "skipped" not in line}

    @property
    def missing(self) -> list[str]:
        """Say which figures there are not, and why."""
        rows = [
            f"{section}, {figure}: {one_line(line.get('error') or line['skipped'])}"
            for (section, figure), line in self.lines.items()
            if "error" in line or "skipped" in line
        ]
        return rows + [f"{name}: the time was over" for name in self.left_out]

    @property
    def tables(self) -> list[Table]:
        """Return everything that was measured."""
        made = (
            aims(self),
            *ceilings(self),
            *acting(self),
            *training(self),
            cache(self),
            *attention(self),
            serving(self),
        )
        return [table for table in (*made, *profiles(self), checks(self), clocks(self)) if table.rows]


def gpu_page(paths: Sequence[Path]) -> str:
    """Return the page of these files' figures; without files it says that nothing was measured."""
    return render("gpu.md", runs=[Run(path) for path in paths])


def _ms(row: Line) -> list[str]:
    return [f"{row[f'{name}_ms']:.3g}" for name in ("p50", "p95", "p99")]


def _calls(row: Line) -> str:
    return f"{row['repetitions']} after {row['warm_up']}"


def aims(run: Run) -> Table:
    """Compare with the aims for this GPU."""
    rows = []
    for aim in AIMS:
        limit = next((limit for name, limit in aim.limits.items() if name in run.gpu), None)
        line = run.of(aim.section).get(aim.figure)
        if limit is not None and line is not None and run.machine["canvas"] == [224, 448]:
            value = aim.read(line)
            met = value >= limit if aim.least else value <= limit
            bound = f"{'at least' if aim.least else 'at most'} {limit:g}"
            rows.append([aim.what, bound, f"{value:.3g}", "met" if met else "missed"])
    return Table("The aims", ("what", "aim", "measured", ""), rows)


def ceilings(run: Run) -> list[Table]:
    """Return the GPU's rates, and those of the model's layers."""
    lines, rates = run.of("ceilings"), []
    for dtype, rate in lines.get("large product", {}).get("tflops", {}).items():
        rates.append([f"product of 8192x8192x8192 in {dtype}", f"{rate:.4g} TFLOP/s"])
    if "copy" in lines:
        rates.append(["copy, bytes read and written", f"{lines['copy']['gb_per_second']:.4g} GB/s"])
    layers = [
        [f"{line['rows']} rows: {name}", str(row["n"]), str(row["k"]), *_ms(row), f"{row['tflops']:.3g}", _calls(row)]
        for figure, line in lines.items()
        if figure.startswith("layers")
        for name, row in line["layers"].items()
    ]
    heads = ("layer", "outputs", "inputs", "p50 ms", "p95", "p99", "TFLOP/s", CALLS)
    return [Table("Ceilings", ("what", "measured"), rates), Table("Products of a block's layers", heads, layers)]


def acting(run: Run) -> list[Table]:
    """Return one robot by stage, batches, the frame encoder and memory."""
    lines = run.of("act")
    one = [
        [f"{stage}: {name}", *_ms(row), _calls(row)]
        for stage, ways in lines.get("one robot", {}).get("stages", {}).items()
        for name, row in ways.items()
    ]
    batches = [
        [
            f"{figure}: {name}",
            *_ms(row),
            f"{line['first_call_s']:.2g}" if name == "engine" else "",
            _calls(row),
        ]
        for figure, line in lines.items()
        if figure.startswith("batch ")
        for name, row in line["ways"].items()
    ]
    frames = [
        [name, *_ms(row), f"{row['error']:.1e}", _calls(row)]
        for name, row in lines.get("frame encoder", {}).get("ways", {}).items()
    ]
    peaks = lines.get("memory", {}).get("peak_reserved_gib", {})
    heads = ("p50 ms", "p95", "p99")
    return [
        Table("Acting, one robot", ("stage", *heads, CALLS), one),
        Table("Acting, canvas to action, by batch", ("batch", *heads, "first call, s", CALLS), batches),
        Table("The frame encoder in a graph", ("precision", *heads, "error", CALLS), frames),
        Table(
            "Peak memory of what acts", ("sizes of batch up to", "GiB"), [[n, f"{gib:.2f}"] for n, gib in peaks.items()]
        ),
    ]


def training(run: Run) -> list[Table]:
    """Return the steps, and how often they make the host wait."""
    lines, rows, waits = run.of("train"), [], []
    for figure, line in lines.items():
        for name, rate in line.get("samples_per_second", {}).items():
            peak, calls = line.get("peak_gib", {}).get(name), f"{line['repetitions']} after {line['warm_up']}"
            took = 1000 * line[f"{name}_s"]
            rows.append(
                [f"{figure}: {name}", f"{took:.4g}", f"{rate:.3g}", "" if peak is None else f"{peak:.1f}", calls]
            )
        waits += [[f"{name}, {line['batch_size']} samples", str(n)] for name, n in line.get("host_syncs", {}).items()]
    return [
        Table("Training", ("step", "ms", "samples/s", "peak GiB", CALLS), rows),
        Table("Host synchronisations of a forward and backward pass", ("step", "number"), waits),
    ]


def cache(run: Run) -> Table:
    """Return windows a second by way of encoding."""
    rows = [
        [
            name,
            f"{row['p50_ms'] / row['windows']:.3g}",
            f"{row['windows_per_second']:.3g}",
            f"{row['error']:.1e}",
            _calls(row),
        ]
        for name, row in run.of("cache").items()
    ]
    return Table("The latent cache", ("encoding", "ms a window", "windows/s", "error", CALLS), rows)


def attention(run: Run) -> list[Table]:
    """Return a table of every shape."""
    heads = ("backend", "p50 ms", "p95", "p99", "error", CALLS)
    tables = []
    for figure, line in run.of("sdpa").items():
        rows = [
            [name, "refused", "", "", "", ""]
            if "refused" in row
            else [name, *_ms(row), f"{row['error']:.1e}", _calls(row)]
            for name, row in line["ways"].items()
        ]
        shape = (
            f"{line['batch']} x {line['queries']} queries, {line['keys']} keys{', masked' if line['masked'] else ''}"
        )
        tables.append(Table(f"Attention, {figure} ({shape})", heads, rows))
    return tables


def serving(run: Run) -> Table:
    """Return round trips by the number of robots."""
    rows = [
        [count, *_ms(row), f"{row['chunks_per_second']:.4g}", _calls(row)]
        for line in run.of("serve").values()
        for count, row in line["robots"].items()
    ]
    return Table("Serving over the socket", ("robots", "p50 ms", "p95", "p99", "chunks/s", CALLS), rows)


def profiles(run: Run) -> list[Table]:
    """Return the heaviest kernels of acting and training."""
    tables = []
    for section, what in (("act", "an engine's call, one robot"), ("train", "a packed forward and backward pass")):
        if line := run.of(section).get("profile"):
            title = f"Heaviest kernels of {what}: {line['kernels']} in all, {line['kernels_ms']:.4g} ms"
            rows = [[one_line(row["name"]), str(row["calls"]), f"{row['ms']:.3g}"] for row in line["heaviest"]]
            tables.append(Table(title, ("kernel", "calls", "ms"), rows))
    return tables


def checks(run: Run) -> Table:
    """Return what the kernels' check, the tests and the capture said."""
    rows = []
    if kernels := run.of("env").get("kernels"):
        rows.append(
            ["kernels", "used" if kernels["used"] else f"not used: {one_line(kernels['wrong'] or 'no Triton')}"]
        )
    if tests := run.of("tests").get("gpu tests"):
        bad = [
            f"{kind.replace('_', ' ')}: {', '.join(tests[kind])}"
            for kind in ("failed", "not_loaded", "not_run")
            if tests[kind]
        ]
        rows.append(["tests that need a GPU", "; ".join([f"{tests['passed']} passed", *map(one_line, bad)])])
    if line := run.of("capture").get("beside a busy thread"):
        trouble = f"; {one_line('; '.join(line['trouble']))}" if line["trouble"] else ""
        rows.append(["graphs captured beside a busy thread", f"{line['captured']} of {line['of']}{trouble}"])
    return Table("Kernels, tests and capture", ("what", "result"), rows)


def clocks(run: Run) -> Table:
    """Return the least and the largest clock of every section."""
    seen: dict[str, dict[str, list[float]]] = {}
    for (section, _), line in run.lines.items():
        for name, pair in line.get("clocks", {}).items():
            seen.setdefault(section, {}).setdefault(name, []).extend(pair)
    names = ("sm_mhz", "memory_mhz", "watts", "celsius")
    rows = [
        [section, *(f"{min(r):.0f} to {max(r):.0f}" if (r := read.get(name)) else "" for name in names)]
        for section, read in seen.items()
    ]
    return Table("Clocks while it was measured", ("section", "SM, MHz", "memory, MHz", "watts", "°C"), rows)
