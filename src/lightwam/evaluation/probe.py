"""Record what a policy imagines and attends to in a few held-out moments, and the real frames, in probe.npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8, jaxtyped

from lightwam.errors import CheckpointError, ConfigError
from lightwam.evaluation.recorded import Recorded, RecordedEpisode
from lightwam.evaluation.result_files import read_arrays, write_arrays
from lightwam.evaluation.seen import Seen, see_recorded, see_simulated, through_latents
from lightwam.policy.policy import Policy
from lightwam.sim.simulator import Simulator
from lightwam.types import Observation

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
        for moment in _simulated_moments(policy, task, simulator, set(moments), imagine_steps)
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
    moments = {len(episode) * share // 4 for share in (1, 2)}
    frames = _frames(policy, moments) | {len(episode) - 1}
    seen = see_recorded(policy, episode, canvases=frames, observations=moments)
    return _moments(policy, seen, task=f"episode {episode.index}", seed=episode.index, imagine_steps=imagine_steps)


def _write(path: Path, policy: Policy, moments: Sequence[Mapping[str, Any]], fps: float, imagine_steps: int) -> None:
    arrays: dict[str, Any] = {name: np.stack([np.asarray(moment[name]) for moment in moments]) for name in moments[0]}
    arrays |= {
        "fps": np.float64(fps),
        "video_stride": np.int64(policy.recipe.codec.video_stride),
        "imagine_steps": np.int64(imagine_steps),
        "taps": np.asarray(policy.recipe.model.backbone.taps, np.int64),
    }
    write_arrays(path, arrays)


def _simulated_moments(
    policy: Policy, task: str, simulator: Simulator, moments: Set[int], imagine_steps: int
) -> list[dict[str, Any]]:
    """Return the arrays of `Probe` for moments of an episode, which goes on after success to the last one's future."""
    seed, last = policy.recipe.eval.first_seed, max(moments, default=0) + policy.recipe.model.horizon
    frames = _frames(policy, moments)
    seen = see_simulated(
        policy, simulator, seed, canvases=frames, observations=moments, last_step=last, stop_at_success=False
    )
    return _moments(policy, seen, task=task, seed=seed, imagine_steps=imagine_steps)


def _frames(policy: Policy, moments: Set[int]) -> set[int]:
    """Return the control steps of the frames that are imagined from these moments."""
    later = range(0, policy.recipe.model.horizon + 1, policy.recipe.codec.video_stride)
    return {moment + k for moment in moments for k in later}


def _moments(policy: Policy, seen: Seen, *, task: str, seed: int, imagine_steps: int) -> list[dict[str, Any]]:
    return [
        _moment(policy, observation, seen.canvases, task=task, seed=seed, step=step, imagine_steps=imagine_steps)
        for step, observation in seen.observations.items()
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
