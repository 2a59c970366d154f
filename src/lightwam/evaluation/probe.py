"""Record what a policy imagines and attends to in a few held-out moments, and the real frames, in probe.npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch.nn.functional import avg_pool3d

from lightwam.data.codec import to_pictures
from lightwam.errors import ConfigError
from lightwam.evaluation.result_files import write_arrays
from lightwam.policy.policy import Policy
from lightwam.sim.simulator import Simulator
from lightwam.types import Observation, to_pixels


@dataclass(frozen=True)
class _Moment:
    """One moment; the fields are the file's arrays without the leading dimension M."""

    tasks: str
    instructions: str
    seeds: int
    steps: int
    imagined: UInt8[np.ndarray, "F height width 3"]
    real: UInt8[np.ndarray, "F height width 3"]
    real_coded: UInt8[np.ndarray, "F height width 3"]
    real_is_pad: Bool[np.ndarray, " F"]
    attention: Float32[np.ndarray, "taps queries rows cols"]


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
    are neither made nor closed here. The arrays are those of `lightwam.report.evidence.Probe`. Raises ConfigError when
    no moment could be recorded.
    """
    recorded = [
        moment
        for task, simulator in simulators.items()
        for moment in _episode(policy, task, simulator, sorted(set(moments)), imagine_steps)
    ]
    if not recorded:
        expected = "at least one simulator and one moment within its episodes"
        raise ConfigError("no moment to record", got=(sorted(simulators), list(moments)), expected=expected)
    arrays: dict[str, Any] = {
        field.name: np.stack([np.asarray(getattr(moment, field.name)) for moment in recorded])
        for field in fields(_Moment)
    }
    arrays |= {
        "fps": np.float64(next(iter(simulators.values())).fps),
        "video_stride": np.int64(policy.recipe.codec.video_stride),
        "imagine_steps": np.int64(imagine_steps),
        "taps": np.asarray(policy.recipe.model.backbone.taps, np.int64),
    }
    write_arrays(path, arrays)


def _episode(
    policy: Policy, task: str, simulator: Simulator, moments: Sequence[int], imagine_steps: int
) -> list[_Moment]:
    """Run one episode, as long as the last moment's future; pictures are rendered only at steps that need one."""
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
        _moment(policy, task, step, observation, canvases, imagine_steps) for step, observation in observations.items()
    ]


def _moment(
    policy: Policy,
    task: str,
    step: int,
    observation: Observation,
    canvases: Mapping[int, UInt8[np.ndarray, "height width 3"]],
    imagine_steps: int,
) -> _Moment:
    recipe, seed = policy.recipe, policy.recipe.eval.first_seed
    times = range(step, step + recipe.model.horizon + 1, recipe.codec.video_stride)
    last = max(time for time in times if time in canvases)
    real = np.stack([canvases[min(time, last)] for time in times])
    return _Moment(
        tasks=task,
        instructions=observation.instruction,
        seeds=seed,
        steps=step,
        imagined=policy.imagine(observation, seed, imagine_steps),
        real=real,
        real_coded=_through_latents(policy, real),
        real_is_pad=np.asarray([time > last for time in times]),
        attention=np.stack(policy.attention(observation)).astype(np.float32),
    )


def _through_latents(
    policy: Policy, frames: UInt8[np.ndarray, "F height width 3"]
) -> UInt8[np.ndarray, "F height width 3"]:
    """Return the frames as the world model could at best show them: encoded, averaged 2x2, decoded."""
    with torch.inference_mode():
        latents = policy.latents.encode(to_pixels(frames[None]))
        return to_pictures(policy.latents.decode_pooled(avg_pool3d(latents, (1, 2, 2))))[0]
