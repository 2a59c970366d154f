"""A trained run as a policy: what a camera and a robot give in, a chunk of robot actions out.

The same codec, latents and text encoder as in training, saved with the run, so nothing is computed twice in two ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from lightwam import checkpoint
from lightwam.codec import Codec
from lightwam.config import Recipe
from lightwam.distributed import device_called
from lightwam.encoders import Prompts, open_processing
from lightwam.engine.engine import Engine
from lightwam.errors import ConfigError, WireError
from lightwam.model.light_wam import LightWAM
from lightwam.types import LatentCodec, Observation


class Policy:
    """Acts, imagines and shows what it looks at. Holds no state of an episode: `act` reads one observation."""

    def __init__(
        self,
        recipe: Recipe,
        codec: Codec,
        latents: LatentCodec,
        prompts: Prompts,
        actor: LightWAM | Engine,
        step: int,
    ) -> None:
        """`actor` is the model or, to act alone, an engine made of it."""
        self.recipe, self.codec, self.latents, self.prompts = recipe, codec, latents, prompts
        self.actor, self.step = actor.eval() if isinstance(actor, LightWAM) else actor, step
        tensor = next(actor.parameters()) if isinstance(actor, LightWAM) else actor.folded.patch_weight
        self.device = tensor.device
        by = "" if isinstance(actor, LightWAM) else ", by the engine"
        by += ", weights in 8 bits" if isinstance(actor, Engine) and actor.folded.place.int8 else ""
        self.computes = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}{by}"

    @property
    def model(self) -> LightWAM:
        """The plain model; ConfigError when there is an engine in its place."""
        if isinstance(self.actor, Engine):
            raise ConfigError("this policy was loaded for acting alone", where="Policy", got="engine=True",
                              next_step="Policy.load(run) without the engine also imagines and looks")  # fmt: skip
        return self.actor

    @classmethod
    def load(
        cls,
        run: Path | str,
        step: int | None = None,
        *,
        ema: bool = True,
        device: str = "cpu",
        weights: str | None = None,
        engine: bool = False,
        int8: bool = False,
    ) -> Policy:
        """The policy of a run directory, at `step` (the newest by default).

        `ema` takes the average of the weights where training kept one. `device` is "cpu" (float32), "cuda" (the
        recipe's precision) or "auto". `weights` is where pretrained encoders lie now, if not where the recipe says.
        `engine`: the same actions sooner, and nothing but actions; with `int8` in less memory, and not quite the same.
        Raises CheckpointError for a run that is missing, damaged, or of another config than its weights, ConfigError
        for `int8` without `engine`.
        """
        if int8 and not engine:
            raise ConfigError("only the engine keeps weights in 8 bits", where="Policy.load", got="int8, no engine",
                              next_step="engine=True as well (lightwam eval: --engine --int8)")  # fmt: skip
        run, place = Path(run), device_called(device)
        recipe = checkpoint.read_recipe(run)
        recipe = recipe if weights is None else replace(recipe, weights=weights)
        codec, latents = open_processing(run, recipe, place)
        saved = checkpoint.load(run, step, training=False)
        model = LightWAM(recipe.model)
        checkpoint.fill(model, checkpoint.run_weights(run, saved, ema=ema), run)
        dtype = getattr(torch, recipe.train.precision) if place.type == "cuda" else torch.float32
        prompts = Prompts(recipe, checkpoint.read_tensors(run / checkpoint.PROMPTS), place)
        # the engine is folded from the weights as they were saved, not from what `dtype` leaves of them
        states = prompts.states
        actor = Engine(model, latents, states, place, dtype, int8=int8) if engine else model.to(place, dtype)
        return cls(recipe, codec, latents, prompts, actor, saved.step)

    def act(self, observation: Observation) -> Float32[np.ndarray, "H A"]:
        """A whole chunk of actions in robot units; WireError when the observation is not what training saw."""
        return self.act_batch([observation])[0]

    @torch.inference_mode()
    def act_batch(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        """Chunks for several robots at once."""
        if isinstance(self.actor, Engine):
            canvases = torch.from_numpy(self._canvases(observations))
            action = self.actor.act(canvases, self._sentences(observations), self._states(observations))
        else:
            action = self.actor.act(*self._inputs(observations))
        return self.codec.decode_action(action.float().cpu().numpy())

    @torch.inference_mode()
    def imagine(self, observation: Observation, seed: int, num_steps: int) -> UInt8[np.ndarray, "F height width 3"]:
        """A possible future, pictures of the codec's canvas, `video_stride` control steps apart, the present first."""
        latent, context, state = self._inputs([observation])
        frames = 1 + self.recipe.model.horizon // self.recipe.codec.video_stride
        later = (frames - 1) // self.latents.temporal_stride
        shape = (1, latent.shape[1], 1 + later, latent.shape[3] // 2, latent.shape[4] // 2)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        future = self.model.imagine(latent, context, state, noise, num_steps)
        return self.codec.pictures(self.latents.decode_pooled(future))[0]

    @torch.inference_mode()
    def foresee(
        self, observations: Sequence[Observation]
    ) -> tuple[Float32[np.ndarray, "B C h2 w2"], Float32[np.ndarray, "B C h2 w2"]]:
        """The present's pooled latents, and those that the video pass expects of the first frames to come.

        One Euler step from a noise that is always the same: from noise alone the velocity leads to the mean of all
        futures that the model holds possible. It is what `surprise` compares with what then comes.
        """
        latent, context, state = self._inputs(observations)
        shape = (1, latent.shape[1], 2, latent.shape[3] // 2, latent.shape[4] // 2)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(latent)
        future = self.model.imagine(latent, context, state, noise.expand(len(latent), -1, -1, -1, -1), 1)
        present, expected = future.float().cpu().numpy().transpose(2, 0, 1, 3, 4)
        return present, expected

    @torch.inference_mode()
    def look(self, observation: Observation) -> list[Float32[np.ndarray, "queries rows cols"]]:
        """What the queries of every tap look at: attention over the picture's tokens, mean over heads, sums to 1."""
        latent, context, state = self._inputs([observation])
        rows, columns = (s // p for s, p in zip(latent.shape[3:], self.recipe.model.backbone.patch[1:], strict=True))
        attention = self.model.look(latent, context, state)
        return [a[0].mean(0).unflatten(-1, (rows, columns)).float().cpu().numpy() for a in attention]

    def _inputs(
        self, observations: Sequence[Observation]
    ) -> tuple[Float[Tensor, "B C 1 h w"], Float[Tensor, "B L E"], Float[Tensor, "B P"]]:
        pixels = self.codec.pixels(self._canvases(observations)[:, None])
        latent = self.latents.encode(pixels.to(self.device))
        context = self.prompts.states(self._sentences(observations))
        return latent, context.to(self.device), self._states(observations).to(self.device)

    def _canvases(self, observations: Sequence[Observation]) -> UInt8[np.ndarray, "B height width 3"]:
        return np.stack([self.codec.canvas(observation.frames) for observation in observations])

    def _sentences(self, observations: Sequence[Observation]) -> list[str]:
        return [observation.instruction for observation in observations]

    def _states(self, observations: Sequence[Observation]) -> Float[Tensor, "B P"]:
        return torch.from_numpy(self.codec.encode_state(np.stack([self._state(one) for one in observations])))

    def _state(self, observation: Observation) -> Float32[np.ndarray, " P"]:
        state = np.asarray(observation.state, np.float32)
        if state.shape != (self.recipe.model.state_dim,) or not np.isfinite(state).all():
            raise WireError(
                "the state does not fit the policy",
                where="observation.state",
                got=f"shape {state.shape}, {state.tolist()}",
                expected=f"{self.recipe.model.state_dim} finite numbers",
            )
        return state
