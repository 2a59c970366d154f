"""How near imagined futures are to what came, beside a frozen picture, over all moments of held-out episodes.

A moment is every `horizon` control steps of an episode. From each the policy imagines several chunks, each from the
last imagined picture. Errors are root mean squares over the pixels and later frames of a chunk, in levels of 255:

imagined   the imagined frames
frozen     the picture of the moment, repeated
coded      the real frames of the first chunk through the latents that the model predicts: the best that it could show

eval/futures.json has their means by task and chunk, over the moments of an episode and then over episodes;
eval/futures.npz has a future of each task to look at.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.config.strict_json import to_dict
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.recorded import Recorded, RecordedEpisode
from lightwam.evaluation.result_files import read_arrays, read_result, write_arrays
from lightwam.evaluation.seen import Seen, rms_error, see_recorded, see_simulated, through_latents
from lightwam.evaluation.statistics import student_quantile
from lightwam.policy.policy import Policy
from lightwam.policy.run_directory import write_json
from lightwam.sim.simulator import Simulator
from lightwam.system.progress import Progress, Say

FILE, PICTURES = "futures.json", "futures.npz"


@dataclass(frozen=True)
class Row:
    """The errors of a task's futures, one chunk of control steps far, or two, ...: means over episodes."""

    task: str
    chunk: int
    """1: the first chunk"""
    episodes: int
    moments: int
    imagined: float
    frozen: float
    coded: float | None
    """of the first chunk only"""
    closer: float
    """share of moments whose imagined frames are nearer than the frozen picture"""
    gain_95: tuple[float, float] | None
    """95 % interval of frozen - imagined, Student's over episodes; None for a single one"""


@dataclass(frozen=True)
class FutureErrors:
    """The contents of eval/futures.json."""

    step: int
    """the checkpoint's"""
    imagine_steps: int
    """Euler steps of a chunk"""
    horizon: int
    """control steps of a chunk"""
    fps: float
    held_out: bool
    """False: the run was trained on these episodes"""
    first_seed: int | None
    """None: recorded episodes"""
    latents: str
    """the recipe's kind"""
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class Pictures:
    """A future of each task: its present, then the last frame of every chunk; the arrays of eval/futures.npz."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    """columns of each task; further ones repeat the last"""
    imagined: UInt8[np.ndarray, "tasks columns height width 3"]
    real: UInt8[np.ndarray, "tasks columns height width 3"]


@dataclass(frozen=True)
class FutureSettings:
    """How many episodes of each task are imagined in, and how far."""

    num_episodes: int = 20
    num_chunks: int = 3
    imagine_steps: int = 20


@dataclass(frozen=True)
class _Moment:
    """The errors at a moment, by chunk, as far as the episode goes."""

    task: str
    episode: int
    imagined: list[float]
    frozen: list[float]
    coded: float
    shown: tuple[UInt8[np.ndarray, "columns height width 3"], UInt8[np.ndarray, "columns height width 3"]]
    """imagined and real picture at the present and at each chunk's end"""


@dataclass(frozen=True)
class _Episode:
    """An episode with the canvas of every frame of the video, and the observation of every moment."""

    task: str
    number: int
    seen: Seen


def measure_futures(
    policy: Policy,
    simulators: Mapping[str, Simulator],
    folder: Path,
    settings: FutureSettings = FutureSettings(),
    say: Say = print,
) -> FutureErrors:
    """Let the policy act in episodes of each simulator, and write and return the errors of imagined futures.

    Seeds are those from `eval.first_seed` up, which training never saw. The simulators are neither made nor closed
    here. ConfigError when no episode is as long as a chunk.
    """
    seed, fps = policy.recipe.eval.first_seed, next(iter(simulators.values())).fps
    episodes = [
        partial(_act, policy, task, simulator, seed + number)
        for task, simulator in simulators.items()
        for number in range(settings.num_episodes)
    ]
    moments = _moments(policy, episodes, settings, say)
    return _write(policy, moments, folder, settings, fps=fps, held_out=True, first_seed=seed)


def measure_recorded_futures(
    policy: Policy, recorded: Recorded, folder: Path, settings: FutureSettings = FutureSettings(), say: Say = print
) -> FutureErrors:
    """Do the same in recorded episodes of each sentence, which takes the place of a task."""
    by_sentence: dict[str, list[RecordedEpisode]] = defaultdict(list)
    for episode in recorded.episodes:
        by_sentence[episode.instruction].append(episode)
    chosen = [episode for group in by_sentence.values() for episode in group[: settings.num_episodes]]
    moments = _moments(policy, [partial(_replay, policy, episode) for episode in chosen], settings, say)
    return _write(policy, moments, folder, settings, fps=recorded.fps, held_out=recorded.held_out, first_seed=None)


def read_futures(folder: Path) -> tuple[FutureErrors, Pictures] | None:
    """Read what was written to `folder`; None without it, CheckpointError when a file of it is broken."""
    errors = read_result(FutureErrors, folder / FILE)
    if errors is None:
        return None
    path, what, step = folder / PICTURES, "the imagined futures cannot be read", "lightwam report RUN --imagine"
    if not path.is_file():
        raise CheckpointError(what, where=path, got="no such file", next_step=step)
    arrays = read_arrays(path, what, step)
    try:
        tasks, lengths = tuple(map(str, arrays["tasks"])), tuple(map(int, arrays["lengths"]))
        return errors, Pictures(tasks, lengths, arrays["imagined"], arrays["real"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(what, where=path, got=repr(error), next_step=step) from error


def _moments(
    policy: Policy, episodes: Sequence[Callable[[], _Episode]], settings: FutureSettings, say: Say
) -> list[_Moment]:
    moments = []
    with Progress("imagine", len(episodes), unit="episode", say=say) as progress:
        for run in episodes:
            moments += _moments_of(policy, run(), settings)
            progress.advance()
    if not moments:
        expected = f"an episode of {policy.recipe.model.horizon} control steps or more"
        raise ConfigError("no moment has a whole chunk after it", got=f"{len(episodes)} episodes", expected=expected)
    return moments


def _act(policy: Policy, task: str, simulator: Simulator, seed: int) -> _Episode:
    steps, last = _steps(policy), policy.recipe.simulation.max_steps
    seen = see_simulated(policy, simulator, seed, **steps, last_step=last, stop_at_success=True)
    return _Episode(task, seed, seen)


def _replay(policy: Policy, episode: RecordedEpisode) -> _Episode:
    return _Episode(episode.instruction, episode.index, see_recorded(policy, episode, **_steps(policy)))


def _steps(policy: Policy) -> dict[str, range]:
    """Return the control steps of the video's frames and of the moments."""
    horizon, stride = policy.recipe.model.horizon, policy.recipe.codec.video_stride
    return {"canvases": range(0, sys.maxsize, stride), "observations": range(0, sys.maxsize, horizon)}


def _moments_of(policy: Policy, episode: _Episode, settings: FutureSettings) -> list[_Moment]:
    """Return the errors at every moment with a whole chunk after it."""
    horizon, seen = policy.recipe.model.horizon, episode.seen
    steps = [step for step in seen.observations if step + horizon in seen.canvases]
    return [_moment(policy, episode, step, settings) for step in steps]


def _moment(policy: Policy, episode: _Episode, step: int, settings: FutureSettings) -> _Moment:
    horizon, stride, canvases = policy.recipe.model.horizon, policy.recipe.codec.video_stride, episode.seen.canvases
    chunks = sum(step + horizon * (k + 1) in canvases for k in range(settings.num_chunks))
    size = horizon // stride
    seen = policy.imagine(episode.seen.observations[step], step, settings.imagine_steps, chunks)
    real = np.stack([canvases[step + stride * k] for k in range(size * chunks + 1)])
    parts = [slice(size * k + 1, size * (k + 1) + 1) for k in range(chunks)]
    ends = [0, *(part.stop - 1 for part in parts)]
    return _Moment(
        task=episode.task,
        episode=episode.number,
        imagined=[float(rms_error(seen[part], real[part])) for part in parts],
        frozen=[float(rms_error(real[:1], real[part])) for part in parts],
        coded=float(rms_error(through_latents(policy, real[: size + 1])[1:], real[parts[0]])),
        shown=(seen[ends], real[ends]),
    )


def _rows(moments: Sequence[_Moment], settings: FutureSettings) -> Iterator[Row]:
    for task, chunk in itertools.product(dict.fromkeys(each.task for each in moments), range(settings.num_chunks)):
        group = [each for each in moments if each.task == task and len(each.imagined) > chunk]
        if not group:
            continue
        by_episode: dict[int, list[_Moment]] = defaultdict(list)
        for each in group:
            by_episode[each.episode].append(each)
        imagined, frozen = (
            np.array([np.mean([getattr(each, name)[chunk] for each in episode]) for episode in by_episode.values()])
            for name in ("imagined", "frozen")
        )
        coded = [np.mean([each.coded for each in episode]) for episode in by_episode.values()]
        yield Row(
            task=task,
            chunk=chunk + 1,
            episodes=len(by_episode),
            moments=len(group),
            imagined=round(float(imagined.mean()), 2),
            frozen=round(float(frozen.mean()), 2),
            coded=round(float(np.mean(coded)), 2) if chunk == 0 else None,
            closer=round(float(np.mean([each.imagined[chunk] < each.frozen[chunk] for each in group])), 3),
            gain_95=_interval(frozen - imagined),
        )


def _interval(values: Float[np.ndarray, " N"]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of a mean, None for a single value."""
    if len(values) < 2:
        return None
    half = student_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return round(float(values.mean()) - half, 2), round(float(values.mean()) + half, 2)


def _write(
    policy: Policy,
    moments: Sequence[_Moment],
    folder: Path,
    settings: FutureSettings,
    *,
    fps: float,
    held_out: bool,
    first_seed: int | None,
) -> FutureErrors:
    """Write both files: errors, and of each task the future with the most motion among the longest."""
    horizon = policy.recipe.model.horizon
    errors = FutureErrors(
        policy.step,
        settings.imagine_steps,
        horizon,
        fps,
        held_out,
        first_seed,
        policy.recipe.latents.kind,
        tuple(_rows(moments, settings)),
    )
    best = {each.task: each for each in sorted(moments, key=lambda each: (len(each.imagined), each.frozen[-1]))}
    shown = {each.task: best[each.task] for each in moments}
    most = max(len(each.shown[0]) for each in shown.values())
    columns = [[min(k, len(each.imagined)) for k in range(most)] for each in shown.values()]
    arrays = {
        "tasks": np.array(list(shown)),
        "lengths": np.array([len(each.shown[0]) for each in shown.values()]),
        "imagined": np.stack([each.shown[0][ks] for each, ks in zip(shown.values(), columns, strict=True)]),
        "real": np.stack([each.shown[1][ks] for each, ks in zip(shown.values(), columns, strict=True)]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / PICTURES, arrays)
    write_json(folder / FILE, to_dict(errors))
    return errors
