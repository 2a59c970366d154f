"""What a policy saw in an episode, in a simulator or recorded, and how far other pictures are from it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from lightwam.data.codec import to_pictures
from lightwam.encoders.future import decode_future
from lightwam.evaluation.recorded import RecordedEpisode
from lightwam.policy.policy import Policy
from lightwam.sim.simulator import Simulator
from lightwam.types import Observation, pool, to_pixels

Canvas = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Seen:
    """The canvases and observations of an episode, by control step."""

    canvases: dict[int, Canvas] = field(default_factory=dict)
    observations: dict[int, Observation] = field(default_factory=dict)


def see_simulated(
    policy: Policy,
    simulator: Simulator,
    seed: int,
    *,
    canvases: Container[int],
    observations: Container[int],
    last_step: int,
    stop_at_success: bool,
) -> Seen:
    """Let the policy act from `seed` until the episode ends, at `last_step` at the latest.

    `canvases` and `observations` are the control steps whose pictures and observations are kept. Pictures are drawn
    only there and where a chunk of actions begins, and of the state in which the episode ends.
    """
    replan = policy.recipe.eval.replan
    seen = Seen()
    chunk: Float32[np.ndarray, "H A"] | None = None
    ended = False
    simulator.reset(seed)
    for step in range(last_step + 1):
        acts = step % replan == 0 and not ended and step < last_step
        if acts or step in canvases or step in observations:
            observation = simulator.observe()
            if acts:
                chunk = policy.act(observation)
            _keep(seen, policy, step, observation, canvases, observations)
        if ended or step == last_step:
            break
        assert chunk is not None
        outcome = simulator.step(chunk[step % replan])
        ended = outcome.ended or (outcome.success and stop_at_success)
    return seen


def see_recorded(
    policy: Policy, episode: RecordedEpisode, *, canvases: Container[int], observations: Container[int]
) -> Seen:
    """Return the canvases and observations of a recorded episode at these control steps."""
    seen = Seen()
    for step, observation in enumerate(episode.observations(policy.cameras)):
        _keep(seen, policy, step, observation, canvases, observations)
    return seen


def _keep(
    seen: Seen,
    policy: Policy,
    step: int,
    observation: Observation,
    canvases: Container[int],
    observations: Container[int],
) -> None:
    if step in canvases:
        seen.canvases[step] = policy.codec.canvas(observation.frames)
    if step in observations:
        seen.observations[step] = observation


def through_latents(
    policy: Policy, frames: UInt8[np.ndarray, "F height width 3"]
) -> UInt8[np.ndarray, "F height width 3"]:
    """Return the frames as the world model could at best show them: encoded, averaged 2x2, decoded."""
    with torch.inference_mode():
        pixels = to_pixels(frames[None])
        return to_pictures(decode_future(policy.latents, pixels[:, :, :1], pool(policy.latents.encode(pixels))))[0]


def rms_error(
    guess: UInt8[np.ndarray, "*batch _f height width 3"], truth: UInt8[np.ndarray, "*batch F height width 3"]
) -> Float[np.ndarray, "*batch"]:
    """Return the root mean square difference over frames and pixels, in levels of 255.

    A `guess` of one frame is compared with every frame.
    """
    return np.asarray(np.sqrt(np.square(guess.astype(np.float32) - truth).mean(axis=(-4, -3, -2, -1))))
