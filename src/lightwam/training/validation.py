"""The error of a training's weights on episodes that it never sees, in robot units, at every checkpoint.

Only the main process measures. It uses a model of its own and draws no random numbers, so training computes the same
bits with and without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from lightwam.config.schema import Recipe
from lightwam.data.cache.base import Cache
from lightwam.data.facts import DatasetFacts
from lightwam.data.sampling import Sampling
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.chunk_errors import RecordedWindows, chunk_errors, state_dims, windows_of
from lightwam.policy.run_directory import Weights
from lightwam.system.cpu import fast_matmuls
from lightwam.training.batches import BatchEncoder
from lightwam.types import Latents, to_pixels

BATCH = 16
"""windows in one pass"""


@dataclass(frozen=True, eq=False)
class Validation:
    """The held-out windows of a training, and what is needed to act on them."""

    recipe: Recipe
    run: Path
    cache: Cache
    encoder: BatchEncoder
    windows: RecordedWindows
    facts: DatasetFacts | None

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        run: Path,
        cache: Cache,
        encoder: BatchEncoder,
        sampling: Sampling,
    ) -> Validation | None:
        """Choose windows of the held-out episodes, where actions are learnt; None if there are none."""
        prefix, taught = recipe.model.supervised_prefix, sampling.teaches_action
        windows = windows_of(cache.state, cache.action, cache.episode_start, sampling.held_out, prefix, taught=taught)
        return cls(recipe, run, cache, encoder, windows, run_directory.read_facts(run)) if len(windows.start) else None

    def measure(self, weights: Weights, device: torch.device) -> dict[str, float]:
        """Return the mean absolute errors of `weights` (all that is trained) and of the baselines, in robot units.

        policy, hold (standing still) and repeat (the last action), over the chunk; first, first_hold and first_repeat
        of its first step; windows, their number. It computes as `Policy` does on this device.
        """
        dtype = getattr(torch, self.recipe.train.precision) if device.type == "cuda" else torch.float32
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # a new model draws its first weights
            model = LightWAM(self.recipe.model)
        frozen = run_directory.read_tensors(self.run / run_directory.FROZEN)
        run_directory.load_strict(model, frozen | weights, self.run)
        model = model.place(device, dtype).eval()
        starts = self.windows.start
        with torch.inference_mode(), fast_matmuls(device, dtype):
            chunks = [self._chunks(model, starts[i : i + BATCH]) for i in range(0, len(starts), BATCH)]
        codec, facts = self.encoder.codec.config, self.facts
        targets = state_dims(codec, *((facts.state_names, facts.action_names) if facts else ()))
        errors = chunk_errors(np.concatenate(chunks), self.windows, codec, targets)
        first = {"first" if name == "policy" else f"first_{name}": error for name, error in errors.first_step().items()}
        return errors.overall() | first | {"windows": float(len(starts))}

    def _chunks(self, model: LightWAM, start: Int64[np.ndarray, " B"]) -> Float32[np.ndarray, "B H A"]:
        """Return the supervised steps of the model's chunks at these control steps, in robot units."""
        cache, codec, weight = self.cache, self.encoder.codec, model.proprio_encoder.weight
        last = cache.episode_start[np.searchsorted(cache.episode_start, start, side="right")] - 1
        frames = start[:, None] + np.arange(0, self.recipe.model.horizon + 1, codec.config.video_stride)
        frames = frames if self.encoder.latents is None else frames[:, :1]  # cached latents are of whole windows
        video = cache.video(np.minimum(frames, last[:, None]))
        if not isinstance(video, Latents):
            assert self.encoder.latents is not None
            present = self.encoder.latents.encode(to_pixels(video))
        else:
            present = video.present
        context = self.encoder.prompts[torch.from_numpy(cache.task_index[start])]
        state = torch.from_numpy(codec.encode_state(cache.state[start]))
        action = model.act(*(part.to(weight.device, weight.dtype) for part in (present, context, state)))
        chunks = codec.decode_action(action.float().cpu().numpy(), cache.state[start])
        return chunks[:, : self.recipe.model.supervised_prefix]


def describe(errors: Mapping[str, float]) -> str:
    """Return the errors as a line."""
    whole = f"held out {errors['policy']:.4g} (hold still {errors['hold']:.4g}, repeat {errors['repeat']:.4g})"
    return f"{whole}; first step {errors['first']:.4g} (repeat {errors['first_repeat']:.4g})"


def log_row(errors: Mapping[str, float]) -> dict[str, float]:
    """Return the errors by their names in log.jsonl: held_out, held_out_hold, held_out_first, ..."""
    names = {name: "held_out" if name == "policy" else f"held_out_{name}" for name in errors if name != "windows"}
    return {names[name]: errors[name] for name in names}
