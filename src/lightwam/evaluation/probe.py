"""Record what a policy imagines and attends to in a few held-out moments, and the real frames, in probe.npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8, jaxtyped

from lightwam.data.codec import to_pictures
from lightwam.encoders.future import decode_future
from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.recorded import Recorded, RecordedEpisode
from lightwam.evaluation.result_files import read_arrays, write_arrays
from lightwam.policy.policy import Policy
from lightwam.sim.simulator import Simulator
from lightwam.types import Observation, pool, to_pixels

MAX_EPISODES = 4
"""recorded episodes that are shown without a simulator"""
NAMES, SCALARS = ("tasks", "instructions"), ("fps", "video_stride", "imagine_steps")


@dataclass(frozen=True)
class Probe:
    """Predicted frames and attention at M moments of held-out episodes; the fields are the arrays of probe.npz."""

    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    seeds: Int[np.ndarray, " M"]
    steps: Int[np.ndarray, " M"]
    """control step of the moment in its episode"""
    fps: float
    """control steps per second"""
    video_stride: int
    imagine_steps: int
    """Euler steps of a sample"""
    taps: Int[np.ndarray, " taps"]
    imagined: UInt8[np.ndarray, "M F height width 3"]
    real: UInt8[np.ndarray, "M F height width 3"]
    real_coded: UInt8[np.ndarray, "M F height width 3"]
    """the real frames, encoded and decoded through the latents that the model predicts"""
    real_is_pad: Bool[np.ndarray, "M F"]
    attention: Float[np.ndarray, "M taps queries rows cols"]


def read_probe(path: Path) -> Probe | None:
    """Read what `record_probe` wrote, None without the file; CheckpointError when it is broken."""
    if not path.is_file():
        return None
    what, step = "the recorded moments cannot be read", "delete the file, then run lightwam report RUN --imagine"
    arrays: dict[str, Any] = read_arrays(path, what, step)
    kinds = get_type_hints(Probe)
    kinds |= dict.fromkeys(NAMES, Shaped[np.ndarray, " M"]) | dict.fromkeys(SCALARS, Shaped[np.ndarray, ""])
    with jaxtyped("context"):  # a size has one value in all arrays
        odd = {name: kind for name, kind in kinds.items() if not isinstance(arrays.get(name), kind)}
    if odd or not len(arrays["tasks"]) or arrays["real"].shape[1] < 2:
        got = {name: (str(array.dtype), array.shape) for name, array in sorted(arrays.items())}
        expected = odd or "at least one moment and a frame after it"
        raise CheckpointError(what, where=path, got=got, expected=expected, next_step=step)
    values = {name: tuple(map(str, arrays[name])) for name in NAMES}
    return Probe(**{name: arrays[name] for name in kinds} | values | {name: arrays[name].item() for name in SCALARS})


def record_probe(
    policy: Policy,
    simulators: Mapping[str, Simulator],
    path: Path,
    *,
    moments: Sequence[int] = (0, 24),
    imagine_steps: int = 20,
) -> None:
    """Run an episode of the policy in each simulator, and write its observations and imagined frames to `path`.

    Every episode has the seed `eval.first_seed`, which training never saw. At each of `moments` (control steps since
    the reset) the policy imagines the future and its attention is recorded. The real frames at the imagined frames'
    times, with the policy replanning as in the evaluation, are recorded as they are and through the latents. An episode
    that ends early repeats its last frame, marked in `real_is_pad`; a moment after the end is left out. The simulators
    are neither made nor closed here. Raises ConfigError when no moment could be recorded.
    """
    recorded = [
        moment
        for task, simulator in simulators.items()
        for moment in _episode(policy, task, simulator, sorted(set(moments)), imagine_steps)
    ]
    if not recorded:
        expected = "at least one simulator and one moment within its episodes"
        raise ConfigError("no moment to record", got=(sorted(simulators), list(moments)), expected=expected)
    _write(path, policy, recorded, next(iter(simulators.values())).fps, imagine_steps)


def record_dataset_probe(policy: Policy, recorded: Recorded, path: Path, *, imagine_steps: int = 20) -> None:
    """Write the same to `path` without a simulator: for moments of recorded episodes, one of each sentence in turn.

    In place of a task it has the episode, and the episode's number is the seed. The real frames are the recorded ones.
    """
    first = {each.instruction: each for each in reversed(recorded.episodes)}
    episodes = [*first.values(), *(each for each in recorded.episodes if each not in first.values())][:MAX_EPISODES]
    moments = [moment for episode in episodes for moment in _recorded_moments(policy, episode, imagine_steps)]
    _write(path, policy, moments, recorded.fps, imagine_steps)


def _recorded_moments(policy: Policy, episode: RecordedEpisode, imagine_steps: int) -> list[dict[str, Any]]:
    """Return the arrays of `Probe` for moments a quarter and half way through an episode."""
    horizon, stride = policy.recipe.model.horizon, policy.recipe.codec.video_stride
    moments = sorted({len(episode) * share // 4 for share in (1, 2)})
    wanted = {moment + k for moment in moments for k in range(0, horizon + 1, stride)} | {len(episode) - 1}
    canvases: dict[int, UInt8[np.ndarray, "height width 3"]] = {}
    observations: dict[int, Observation] = {}
    for step, observation in enumerate(episode.observations(policy.cameras)):
        if step in wanted:
            canvases[step] = policy.codec.canvas(observation.frames)
        if step in moments:
            observations[step] = observation
    name = f"episode {episode.index}"
    return [
        _moment(policy, observation, canvases, task=name, seed=episode.index, step=step, imagine_steps=imagine_steps)
        for step, observation in observations.items()
    ]


def _write(path: Path, policy: Policy, moments: Sequence[Mapping[str, Any]], fps: float, imagine_steps: int) -> None:
    arrays: dict[str, Any] = {name: np.stack([np.asarray(moment[name]) for moment in moments]) for name in moments[0]}
    arrays |= {
        "fps": np.float64(fps),
        "video_stride": np.int64(policy.recipe.codec.video_stride),
        "imagine_steps": np.int64(imagine_steps),
        "taps": np.asarray(policy.recipe.model.backbone.taps, np.int64),
    }
    write_arrays(path, arrays)


def _episode(
    policy: Policy, task: str, simulator: Simulator, moments: Sequence[int], imagine_steps: int
) -> list[dict[str, Any]]:
    """Run one episode, as long as the last moment's future; pictures are rendered only at steps that need one.

    Returns the arrays of `Probe` for each moment, without the leading dimension M.
    """
    recipe, seed = policy.recipe, policy.recipe.eval.first_seed
    horizon, stride, replan = recipe.model.horizon, recipe.codec.video_stride, recipe.eval.replan
    canvases: dict[int, UInt8[np.ndarray, "height width 3"]] = {}
    observations: dict[int, Observation] = {}
    chunk, ended = None, False
    wanted = {moment + k for moment in moments for k in range(0, horizon + 1, stride)}
    simulator.reset(seed)
    for step in range(max(moments, default=-horizon - 1) + horizon + 1):
        if step % replan == 0 or step in wanted:
            observation = simulator.observe()
            if step % replan == 0:
                chunk = policy.act(observation)
            if step in wanted:
                canvases[step] = policy.codec.canvas(observation.frames)
            if step in moments:
                observations[step] = observation
        if ended:
            break
        assert chunk is not None
        ended = simulator.step(chunk[step % replan]).ended
    return [
        _moment(policy, observation, canvases, task=task, seed=seed, step=step, imagine_steps=imagine_steps)
        for step, observation in observations.items()
    ]


def _moment(
    policy: Policy,
    observation: Observation,
    canvases: Mapping[int, UInt8[np.ndarray, "height width 3"]],
    *,
    task: str,
    seed: int,
    step: int,
    imagine_steps: int,
) -> dict[str, Any]:
    """Return the arrays of `Probe` for a moment, without the dimension M; `canvases`: control step -> real picture."""
    times = range(step, step + policy.recipe.model.horizon + 1, policy.recipe.codec.video_stride)
    last = max(time for time in canvases if time <= times[-1])
    real = np.stack([canvases[min(time, last)] for time in times])
    return {
        "tasks": task,
        "instructions": observation.instruction,
        "seeds": seed,
        "steps": step,
        "imagined": policy.imagine(observation, seed, imagine_steps),
        "real": real,
        "real_coded": through_latents(policy, real),
        "real_is_pad": [time > last for time in times],
        "attention": np.stack(policy.attention(observation)).astype(np.float32),
    }


def through_latents(
    policy: Policy, frames: UInt8[np.ndarray, "F height width 3"]
) -> UInt8[np.ndarray, "F height width 3"]:
    """Return the frames as the world model could at best show them: encoded, averaged 2x2, decoded."""
    with torch.inference_mode():
        pixels = to_pixels(frames[None])
        return to_pictures(decode_future(policy.latents, pixels[:, :, :1], pool(policy.latents.encode(pixels))))[0]
