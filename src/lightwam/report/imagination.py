"""What goes on inside: imagined futures beside what came, and where each tapped layer looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from lightwam.report.evidence import Evidence, Probe
from lightwam.report.formatting import THIN, counted, escape, figures
from lightwam.report.html import image, missing, report_command, section
from lightwam.report.images import heat, jpeg, overlay

SHOWN_FRAMES = 5
SHOWN_QUERIES = 4


def imagination(evidence: Evidence) -> str:
    """Rows of frames: the imagined future, the real one through the same codec, the real one."""
    title, probe = "Imagined and real futures", evidence.probe
    if probe is None:
        command = report_command(evidence.run, "imagine")
        return section("imagination", title, missing("No moments have been recorded.", command))
    moved = _pixel_error(probe.real_coded[:, :1], probe.real_coded)
    best = {
        task: max((i for i, t in enumerate(probe.tasks) if t == task), key=lambda i: moved[i])
        for task in dict.fromkeys(probe.tasks)
    }
    blocks = [_moment(probe, i) for i in best.values()]
    rest = [_moment(probe, i) for i in range(len(probe.tasks)) if i not in best.values()]
    if rest:
        blocks.append(f"<details><summary>{counted(len(rest), 'more moment')}</summary>{''.join(rest)}</details>")
    averaged = any(first != last for first, last in moments_apart(probe))
    spans = "One latent stands for several frames, and shows their mean. " if averaged else ""
    lead = (
        "From one picture, the sentence and the robot's state the model dreams what comes next "
        f"({counted(probe.imagine_steps, 'Euler step')}, episodes of seed {probe.seeds[0]}). Then the policy acts, and "
        "these are the frames that really came. The model dreams in coarse latents; &ldquo;real, same codec&rdquo; is "
        f"reality through those same latents, the best that a dream could be. {spans}Of each task the moment with the "
        "most motion is shown."
    )
    few = " few" if len(moments_apart(probe)) <= 3 else ""
    return section("imagination", title, f'<div class="moments{few}">{"".join(blocks)}</div>', lead=lead)


def _moment(probe: Probe, i: int) -> str:
    columns = moments_apart(probe)
    height, width = probe.real.shape[2:4]
    rows = (
        ("imagined", probe.imagined, "Imagined"),
        ("real", probe.real_coded, "Real, same codec"),
        ("sharp", probe.real, "Real"),
    )
    times = [_time(first, last, probe.video_stride / probe.fps) for first, last in columns]
    cells = ['<span class="corner"></span>', *(f'<span class="time">{time}</span>' for time in times)]
    for kind, array, name in rows:
        cells.append(f'<span class="row {kind}">{name}</span>')
        for (first, last), time in zip(columns, times, strict=True):
            k = (first + last + 1) // 2
            over = " (episode over)" if probe.real_is_pad[i, k] and kind != "imagined" else ""
            cells.append(image(jpeg(array[i, k]), f"{probe.tasks[i]}, {name.lower()}, {time}{over}", width, height))
    error, still = (
        _pixel_error(array[i : i + 1], probe.real_coded[i : i + 1])[0]
        for array in (probe.imagined, probe.real_coded[:, :1])
    )
    verdict = "closer to it than" if error < still else "no closer to it than"
    return (
        f'<article class="moment"><h3>{escape(probe.tasks[i])} <small>&ldquo;{escape(probe.instructions[i])}&rdquo;, '
        f"step {probe.steps[i]}</small></h3>"
        f'<div class="frames" style="--times:{len(columns)}">{"".join(cells)}</div>'
        f'<p class="small">Mean error of a pixel against the real future, same codec: imagined {error:.1f} of 255, '
        f"the present held still {still:.1f}. The dream is {verdict} a frozen picture.</p></article>"
    )


def moments_apart(probe: Probe) -> list[tuple[int, int]]:
    """(first, last) frame of each column: frames that a latent holds as one share a column; few columns are kept."""
    both = np.stack([probe.imagined, probe.real_coded])
    changes = [k for k in range(1, both.shape[2]) if not np.array_equal(both[:, :, k], both[:, :, k - 1])]
    starts = [0, *(k for k in changes if k > 1), *([1] if both.shape[2] > 1 else [])]
    starts = sorted(set(starts))
    spans = list(zip(starts, [k - 1 for k in starts[1:]] + [both.shape[2] - 1], strict=True))
    kept = np.linspace(0, len(spans) - 1, min(len(spans), SHOWN_FRAMES)).round().astype(int).tolist()
    return [spans[i] for i in kept]


def _time(first: int, last: int, seconds: float) -> str:
    if last == 0:
        return "now"
    until = f"{figures(last * seconds)}{THIN}s"
    return f"+{until}" if first == last else f"+{figures(first * seconds)} to {until}"


def _pixel_error(guess: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, " M"]:
    """Mean absolute difference over the future frames, in levels of 255."""
    wide = np.broadcast_to(guess, truth.shape)[:, 1:].astype(np.float32)
    return np.abs(wide - truth[:, 1:].astype(np.float32)).mean(axis=(1, 2, 3, 4))


def attention(evidence: Evidence) -> str:
    """Heat over the picture, for every task and tap: the mean of the queries, and the queries that differ most."""
    title, probe = "What each tapped layer looks at", evidence.probe
    if probe is None:
        command = report_command(evidence.run, "imagine")
        return section("attention", title, missing("No attention has been recorded.", command))
    rows, cols = probe.attention.shape[3:]
    weight = probe.attention * (rows * cols)
    chosen = [differing(weight[:, tap].mean(0), SHOWN_QUERIES) for tap in range(len(probe.taps))]
    mean = weight.mean(2)
    single = [weight[:, tap, which] for tap, which in enumerate(chosen)]
    looks = _Looks(probe, mean, single, chosen, _top(mean), max(map(_top, single)))
    last = {task: max(i for i, t in enumerate(probe.tasks) if t == task) for task in dict.fromkeys(probe.tasks)}
    some, every = len(chosen[0]), weight.shape[2]
    which = "each of them" if some == every else f"the {some} queries of each layer that differ most from each other"
    lead = (
        f"In {counted(len(probe.taps), 'layer')} of the backbone, {every} learned queries pool what the "
        f"action needs from {rows}&times;{cols} picture tokens. Shown are their mean and {which}; a query keeps its "
        "column in every task."
    )
    broad = " broad" if probe.real.shape[3] > 1.5 * probe.real.shape[2] else ""
    blocks = "".join(looks.of(i) for i in last.values())
    return section("attention", title, looks.scale(), f'<div class="attention{broad}">{blocks}</div>', lead=lead)


@dataclass(frozen=True)
class _Looks:
    """Attention in multiples of an even share, and the values that the two colour scales end at."""

    probe: Probe
    mean: Float[np.ndarray, "M taps rows cols"]
    single: list[Float[np.ndarray, "M shown rows cols"]]
    chosen: list[list[int]]
    top_mean: float
    top_single: float

    def of(self, i: int) -> str:
        """One moment: the picture, and a row of tiles a layer."""
        probe, task, picture = self.probe, self.probe.tasks[i], self.probe.real[i, 0]
        height, width = picture.shape[:2]
        rows = []
        for tap, block in enumerate(probe.taps.tolist()):
            maps = [("mean", self.mean[i, tap], self.top_mean)]
            maps += [(f"query {q}", self.single[tap][i, k], self.top_single) for k, q in enumerate(self.chosen[tap])]
            tiles = []
            for name, weight, top in maps:
                alt = f"{task}, layer {block}, {name}: its strongest token has {weight.max():.1f} times an even share"
                shown = image(jpeg(overlay(picture, weight / top), 4), alt, width, height)
                tiles.append(f"<figure>{shown}<figcaption>{name}</figcaption></figure>")
            rows.append(f'<h4>layer {block}</h4><div class="looks" style="--tiles:{len(tiles)}">{"".join(tiles)}</div>')
        seen = image(jpeg(picture), f"{task}: the picture", width, height)
        sentence = f"<small>&ldquo;{escape(probe.instructions[i])}&rdquo;, step {probe.steps[i]}</small>"
        return (
            f'<article class="look"><header>{seen}<h3>{escape(task)} {sentence}</h3></header>{"".join(rows)}</article>'
        )

    def scale(self) -> str:
        """The legend."""
        ramp = jpeg(heat(np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(12, 0)), 2)
        mean, single = figures(self.top_mean), figures(self.top_single)
        bar = image(
            ramp, f"colour scale, from 0 to {mean} times an even share for means, {single} times for queries", 256, 12
        )
        return (
            f'<p class="scale"><span>0</span>{bar}<span>{mean}&times; an even share of attention for a mean, '
            f"{single}&times; for a single query</span></p>"
        )


def _top(weight: Float[np.ndarray, "M maps rows cols"]) -> float:
    """Where a colour scale ends: above the peaks of nine maps in ten, a round number, at least twice an even share."""
    return max(2.0, float(np.ceil(np.quantile(weight.max((2, 3)), 0.9))))


def differing(maps: Float32[np.ndarray, "queries rows cols"], count: int) -> list[int]:
    """Up to `count` queries, the sharpest first, then always the one farthest from all chosen; in rising order."""
    flat = maps.reshape(len(maps), -1)
    chosen = [int(flat.max(1).argmax())]
    while len(chosen) < min(count, len(flat)):
        distance = np.stack([np.abs(flat - flat[i]).sum(1) for i in chosen]).min(0)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return sorted(chosen)
