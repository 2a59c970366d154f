"""What the model predicts and attends to: future frames next to the real ones, and attention maps of every tap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from lightwam.evaluation.future_errors import FutureErrors, Pictures, Row
from lightwam.evaluation.probe import Probe
from lightwam.evaluation.seen import rms_error
from lightwam.report.formatting import THIN, short_number
from lightwam.report.images import Image, heat, jpeg, overlay

MAX_COLUMNS = 5
SHOWN_QUERIES = 4


@dataclass(frozen=True)
class Frame:
    """A frame of a future."""

    time: str
    image: Image
    padded: bool
    """whether the episode was over, and the frame repeats its last one"""


@dataclass(frozen=True)
class Moment:
    """A moment of an episode: the predicted, the reconstructed and the real future, and the errors against them."""

    task: str
    instruction: str
    step: int
    predicted: tuple[Frame, ...]
    reconstructed: tuple[Frame, ...]
    real: tuple[Frame, ...]
    prediction_error: float
    """root mean square difference to the real future, of 255"""
    present_error: float
    """the same when the present frame is repeated"""
    reconstruction_error: float


@dataclass(frozen=True)
class Futures:
    """The moments to show first and those to fold away."""

    shown: list[Moment]
    others: list[Moment]
    shared_latents: bool
    """whether a latent stands for several frames"""


@dataclass(frozen=True)
class AttentionMap:
    """An attention map over its picture; `peak` is the largest weight as a multiple of uniform attention."""

    name: str
    peak: float
    image: Image


@dataclass(frozen=True)
class TaskAttention:
    """The maps of one picture, by backbone layer."""

    task: str
    instruction: str
    step: int
    picture: Image
    layers: tuple[tuple[int, tuple[AttentionMap, ...]], ...]


@dataclass(frozen=True)
class Attention:
    """Attention maps of every task, and the values at which their colour scales end."""

    tasks: tuple[TaskAttention, ...]
    mean_limit: float
    query_limit: float
    ramp: Image


def futures(probe: Probe) -> Futures:
    """Return the recorded moments; of every task the one with the most motion is shown first."""
    motion = rms_error(probe.real[:, :1], probe.real[:, 1:])
    groups = ([i for i, task in enumerate(probe.tasks) if task == name] for name in dict.fromkeys(probe.tasks))
    shown = [max(group, key=lambda i: motion[i]) for group in groups]
    others = [i for i in range(len(probe.tasks)) if i not in shown]
    shared_latents = any(first != last for first, last in distinct_frames(probe))
    return Futures([_moment(probe, i) for i in shown], [_moment(probe, i) for i in others], shared_latents)


@dataclass(frozen=True)
class Strip:
    """A future several chunks long: the present, and the last frame of each chunk."""

    task: str
    times: tuple[str, ...]
    imagined: tuple[Image, ...]
    real: tuple[Image, ...]


@dataclass(frozen=True)
class FarFutures:
    """Errors over all moments of held-out episodes, and a future of each task."""

    errors: FutureErrors
    tasks: tuple[tuple[str, tuple[Row, ...]], ...]
    """of each task, a row a chunk"""
    ends: tuple[str, ...]
    """when each chunk ends"""
    strips: tuple[Strip, ...]


def far_futures(errors: FutureErrors, pictures: Pictures) -> FarFutures:
    """Return what is shown of the errors by chunk."""
    by_task = {row.task: tuple(each for each in errors.rows if each.task == row.task) for row in errors.rows}
    seconds = errors.horizon / errors.fps
    most = max(row.chunk for row in errors.rows)
    ends = tuple(f"+{short_number(chunk * seconds)}{THIN}s" for chunk in range(1, most + 1))
    strips = tuple(
        Strip(task, ("now", *ends[: length - 1]), tuple(map(jpeg, seen[:length])), tuple(map(jpeg, real[:length])))
        for task, length, seen, real in zip(
            pictures.tasks, pictures.lengths, pictures.imagined, pictures.real, strict=True
        )
    )
    return FarFutures(errors, tuple(by_task.items()), ends, strips)


def distinct_frames(probe: Probe) -> list[tuple[int, int]]:
    """Return (first, last) frame of each column: frames that share a latent share a column; at most MAX_COLUMNS."""
    spans = frame_spans(np.concatenate([probe.imagined, probe.real_coded]))
    kept = np.linspace(0, len(spans) - 1, min(len(spans), MAX_COLUMNS)).round().astype(int).tolist()
    return [spans[i] for i in kept]


def frame_spans(videos: UInt8[np.ndarray, "videos F height width 3"]) -> list[tuple[int, int]]:
    """Return (first, last) of the frames that are equal in each of the videos; the present, frame 0, is alone."""
    num_frames = videos.shape[1]
    changes = [k for k in range(2, num_frames) if not np.array_equal(videos[:, k], videos[:, k - 1])]
    starts = [0, 1, *changes]
    return list(zip(starts, [k - 1 for k in starts[1:]] + [num_frames - 1], strict=True))


def _moment(probe: Probe, i: int) -> Moment:
    def frames(array: np.ndarray, real: bool = True) -> tuple[Frame, ...]:
        return tuple(
            Frame(
                time_span(*span, probe.video_stride / probe.fps),
                jpeg(array[i, k]),
                real and bool(probe.real_is_pad[i, k]),
            )
            for span in distinct_frames(probe)
            for k in [(sum(span) + 1) // 2]
        )

    real = probe.real[i]
    return Moment(
        task=probe.tasks[i],
        instruction=probe.instructions[i],
        step=int(probe.steps[i]),
        predicted=frames(probe.imagined, real=False),
        reconstructed=frames(probe.real_coded),
        real=frames(probe.real),
        prediction_error=float(rms_error(probe.imagined[i, 1:], real[1:])),
        present_error=float(rms_error(real[:1], real[1:])),
        reconstruction_error=float(rms_error(probe.real_coded[i, 1:], real[1:])),
    )


def time_span(first: int, last: int, seconds: float) -> str:
    """Return when frames are shown, `seconds` apart: now, +0.3 s, +0.1 to +0.3 s."""
    if last == 0:
        return "now"
    end = f"{short_number(last * seconds)}{THIN}s"
    return f"+{end}" if first == last else f"+{short_number(first * seconds)} to {end}"


def attention(probe: Probe) -> Attention:
    """Draw the attention of each task's last moment: the mean over queries, and the queries that differ most."""
    rows, cols = probe.attention.shape[3:]
    weight = probe.attention * (rows * cols)  # 1 is uniform attention
    shown = [distinct_queries(weight[:, tap].mean(0), SHOWN_QUERIES) for tap in range(len(probe.taps))]
    mean, single = weight.mean(2), [weight[:, tap, queries] for tap, queries in enumerate(shown)]
    mean_limit, query_limit = _scale_limit(mean), max(map(_scale_limit, single))

    def layer(i: int, tap: int) -> tuple[AttentionMap, ...]:
        maps = [("mean", mean[i, tap], mean_limit)]
        maps += [(f"query {q}", single[tap][i, k], query_limit) for k, q in enumerate(shown[tap])]
        picture = probe.real[i, 0]
        return tuple(AttentionMap(name, float(w.max()), jpeg(overlay(picture, w / top), 4)) for name, w, top in maps)

    last = {task: i for i, task in enumerate(probe.tasks)}
    return Attention(
        tasks=tuple(
            TaskAttention(
                task=task,
                instruction=probe.instructions[i],
                step=int(probe.steps[i]),
                picture=jpeg(probe.real[i, 0]),
                layers=tuple((block, layer(i, tap)) for tap, block in enumerate(probe.taps.tolist())),
            )
            for task, i in last.items()
        ),
        mean_limit=mean_limit,
        query_limit=query_limit,
        ramp=jpeg(heat(np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(12, 0)), 2),
    )


def _scale_limit(weight: Float[np.ndarray, "M maps rows cols"]) -> float:
    """Where a colour scale ends: above the peaks of nine maps in ten, a round number, at least 2."""
    return max(2.0, float(np.ceil(np.quantile(weight.max((2, 3)), 0.9))))


def distinct_queries(maps: Float32[np.ndarray, "queries rows cols"], count: int) -> list[int]:
    """Return up to `count` queries, rising: the sharpest, then always the one farthest from those selected."""
    flat = maps.reshape(len(maps), -1)
    selected = [int(flat.max(1).argmax())]
    while len(selected) < min(count, len(flat)):
        distance = np.stack([np.abs(flat - flat[i]).sum(1) for i in selected]).min(0)
        distance[selected] = -1
        selected.append(int(distance.argmax()))
    return sorted(selected)
