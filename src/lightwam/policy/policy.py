"""A trained run as a policy: what a camera and a robot give in, a chunk of robot actions out.

The same codec, latents and text encoder as in training, saved with the run, so nothing is computed twice in two ways.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from lightwam.config.checks import check
from lightwam.config.schema import EvalConfig, Recipe, SimConfig, adapted
from lightwam.data.codec import Codec, to_pictures
from lightwam.encoders.frozen import Prompts
from lightwam.engine.engine import Engine
from lightwam.errors import ConfigError, WireError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import hub, run_directory
from lightwam.policy.episode import Episode
from lightwam.policy.run_directory import open_processing
from lightwam.system.devices import device_called
from lightwam.types import LatentCodec, Observation, to_pixels

ObservationLike = Observation | Mapping[str, Any]
"""an `Observation`, or a mapping with its fields, whose state may be any list of numbers"""
FIELDS = {"frames", "state", "instruction"}
MOST_SHOWN = 64
"""numbers of a state that an error shows"""
FARTHEST = 1e9
"""largest normalised state accepted; beyond it the model's numbers become infinite"""


class Policy:
    """Acts, imagines and shows what it looks at. Holds no state of an episode: `act` reads one observation.

    >>> import numpy as np
    >>> from lightwam import Policy
    >>> policy = Policy.load("runs/point")  # or a Hub id: "someone/lightwam-point"
    >>> policy.cameras, policy.recipe.model.state_dim
    (('top',), 2)
    >>> picture = np.zeros((32, 32, 3), np.uint8)  # height x width x 3, RGB, upright
    >>> seen = {"frames": {"top": picture}, "state": [0.5, -0.5], "instruction": "move to the red dot"}
    >>> chunk = policy.act(seen)  # the next 8 actions, in robot units
    >>> chunk.shape, chunk.dtype
    ((8, 2), dtype('float32'))
    >>> policy.imagine(seen).shape  # what the camera may see meanwhile: frames, height, width, RGB
    (5, 32, 32, 3)
    >>> episode = policy.begin()  # one action at a time
    >>> bool((episode.action(seen) == chunk[0]).all())
    True
    """

    def __init__(
        self,
        recipe: Recipe,
        codec: Codec,
        latents: LatentCodec,
        prompts: Prompts,
        actor: LightWAM | Engine,
        step: int,
        run: Path | None = None,
        *,
        averaged: bool = False,
    ) -> None:
        """`actor` is the model or, to act alone, an engine made of it; `run` is where it was loaded from.

        `averaged`: its weights are the average that training kept.
        """
        self.recipe, self.codec, self.latents, self.prompts = recipe, codec, latents, prompts
        self.run, self.averaged = run, averaged
        self.actor, self.step = actor.eval() if isinstance(actor, LightWAM) else actor, step
        tensor = next(actor.parameters()) if isinstance(actor, LightWAM) else actor.folded.patch_weight
        self.device = tensor.device
        by = "" if isinstance(actor, LightWAM) else ", by the engine"
        by += ", weights in 8 bits" if isinstance(actor, Engine) and actor.folded.placement.int8 else ""
        self.computes = f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type}{by}"

    @property
    def model(self) -> LightWAM:
        """The plain model; ConfigError when there is an engine in its place."""
        if isinstance(self.actor, Engine):
            raise ConfigError("this policy was loaded for acting alone", where="Policy", got="engine=True",
                              next_step="Policy.load(run) without the engine also imagines and looks")  # fmt: skip
        return self.actor

    def identity(self) -> dict[str, Any]:
        """What an evaluation's result says of it: recipe, step, which weights, and what computes."""
        return {
            "recipe": self.recipe.name,
            "checkpoint_step": self.step,
            "weights": "ema" if self.averaged else "last",
            "computes": self.computes,
        }

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """ConfigError where an evaluation's world or settings do not fit the recipe that it was trained by."""
        check(adapted(self.recipe, sim, settings))

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras whose pictures it must be given."""
        return self.codec.cameras

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
        """The policy of a run directory, or of a run on the Hugging Face Hub, at `step` (the newest by default).

        A string OWNER/NAME, or OWNER/NAME@REVISION, that names nothing on this disk is a Hub id: what acting needs is
        fetched once (extra `hub`) and kept in the Hub's cache. A `Path` is always a path.
        `ema` takes the average of the weights where training kept one. `device` is "cpu" (float32), "cuda" (the
        recipe's precision) or "auto". `weights` is where pretrained encoders lie now, if not where the recipe says.
        `engine`: the same actions sooner, and nothing but actions; with `int8` in less memory, and not quite the same.
        Raises CheckpointError for a run that is missing, cannot be fetched, is damaged, or is of another config than
        its weights, ConfigError for `int8` without `engine`.
        """
        if int8 and not engine:
            raise ConfigError("only the engine keeps weights in 8 bits", where="Policy.load", got="int8, no engine",
                              next_step="engine=True as well (lightwam eval: --engine --int8)")  # fmt: skip
        run, place = hub.find_run(run, step), device_called(device)
        recipe = run_directory.read_recipe(run)
        recipe = recipe if weights is None else replace(recipe, weights=weights)
        codec, latents = open_processing(run, recipe, place)
        saved = run_directory.load(run, step, training=False)
        model = LightWAM(recipe.model)
        run_directory.load_strict(model, run_directory.run_weights(run, saved, ema=ema), run)
        dtype = getattr(torch, recipe.train.precision) if place.type == "cuda" else torch.float32
        prompts = Prompts(recipe, run_directory.read_tensors(run / run_directory.PROMPTS), place)
        # the engine is folded from the weights as they were saved, not from what `dtype` leaves of them
        states = prompts.states
        actor = Engine(model, latents, states, place, dtype, int8=int8) if engine else model.to(place, dtype)
        averaged = ema and saved.ema is not None
        return cls(recipe, codec, latents, prompts, actor, saved.step, run, averaged=averaged)

    def begin(self, replan: int | None = None) -> Episode:
        """An episode that gives one action at a time, and asks for the next chunk after `replan` of them.

        `replan` is the recipe's by default; ConfigError when more would be executed than were supervised.
        """
        steps, most = self.recipe.eval.replan if replan is None else replan, self.recipe.model.supervised_prefix
        if not 1 <= steps <= most:
            raise ConfigError("so many steps of a chunk cannot be executed", where="replan", got=steps,
                              expected=f"1 to {most}, the steps that training supervised")  # fmt: skip
        return Episode(self.act, steps)

    def reset(self) -> None:
        """Does nothing, as there is nothing to forget: for loops written for policies that remember.

        What an episode remembers is in the `Episode` that `begin` gives, and is forgotten by its own `reset`.
        """

    def act(self, observation: ObservationLike) -> Float32[np.ndarray, "H A"]:
        """A whole chunk of actions in robot units; WireError when the observation is not what training saw."""
        return self.act_batch([observation])[0]

    @torch.inference_mode()
    def act_batch(self, observations: Sequence[ObservationLike]) -> Float32[np.ndarray, "B H A"]:
        """Chunks for several robots at once."""
        seen = [self._fields(observation) for observation in observations]
        if isinstance(self.actor, Engine):
            canvases = torch.from_numpy(self._canvases(seen))
            action = self.actor.act(canvases, _sentences(seen), self._states(seen))
        else:
            action = self.actor.act(*self._inputs(seen))
        return self.codec.decode_action(action.float().cpu().numpy())

    @torch.inference_mode()
    def imagine(
        self, observation: ObservationLike, seed: int = 0, num_steps: int = 20
    ) -> UInt8[np.ndarray, "F height width 3"]:
        """A possible future, pictures of the codec's canvas, `video_stride` control steps apart, the present first.

        Another `seed` gives another future; `num_steps` are the Euler steps from noise to it.
        """
        latent, context, state = self._inputs([self._fields(observation)])
        frames = 1 + self.recipe.model.horizon // self.recipe.codec.video_stride
        later = (frames - 1) // self.latents.temporal_stride
        shape = (1, latent.shape[1], 1 + later, latent.shape[3] // 2, latent.shape[4] // 2)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        future = self.model.imagine(latent, context, state, noise, num_steps)
        return to_pictures(self.latents.decode_pooled(future))[0]

    @torch.inference_mode()
    def predict_next(
        self, observations: Sequence[ObservationLike]
    ) -> tuple[Float32[np.ndarray, "B C h2 w2"], Float32[np.ndarray, "B C h2 w2"]]:
        """The present's pooled latents, and those that the video pass expects of the first frames to come.

        One Euler step from a noise that is always the same: from noise alone the velocity leads to the mean of all
        futures that the model holds possible. It is what `surprise` compares with what then comes.
        """
        latent, context, state = self._inputs([self._fields(one) for one in observations])
        shape = (1, latent.shape[1], 2, latent.shape[3] // 2, latent.shape[4] // 2)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(latent)
        future = self.model.imagine(latent, context, state, noise.expand(len(latent), -1, -1, -1, -1), 1)
        present, expected = future.float().cpu().numpy().transpose(2, 0, 1, 3, 4)
        return present, expected

    @torch.inference_mode()
    def attention(self, observation: ObservationLike) -> list[Float32[np.ndarray, "queries rows cols"]]:
        """What the queries of every tap look at: attention over the picture's tokens, mean over heads, sums to 1."""
        latent, context, state = self._inputs([self._fields(observation)])
        rows, columns = (s // p for s, p in zip(latent.shape[3:], self.recipe.model.backbone.patch[1:], strict=True))
        attention = self.model.attention(latent, context, state)
        return [a[0].mean(0).unflatten(-1, (rows, columns)).float().cpu().numpy() for a in attention]

    def _fields(self, observation: ObservationLike) -> Mapping[str, Any]:
        """Return frames, state and instruction by name; WireError when one is missing, unknown or of another kind.

        A policy trained without a state needs none and ignores it.
        """
        fields = vars(observation) if isinstance(observation, Observation) else observation
        if self.recipe.model.state_dim == 0 and isinstance(fields, Mapping):
            fields = {**fields, "state": ()}
        if not isinstance(fields, Mapping) or set(fields) != FIELDS:
            got = sorted(map(str, fields)) if isinstance(fields, Mapping) else type(fields).__name__
            raise WireError("an observation has other parts", where="observation", got=got, expected=sorted(FIELDS))
        for name, kind in (("frames", Mapping), ("instruction", str)):
            if not isinstance(fields[name], kind):
                raise WireError(f"the {name} of an observation are of another kind", where=f"observation.{name}",
                                got=type(fields[name]).__name__, expected=kind.__name__)  # fmt: skip
        return fields

    def _inputs(
        self, seen: Sequence[Mapping[str, Any]]
    ) -> tuple[Float[Tensor, "B C 1 h w"], Float[Tensor, "B L E"], Float[Tensor, "B P"]]:
        pixels = to_pixels(self._canvases(seen)[:, None])
        latent = self.latents.encode(pixels.to(self.device))
        context = self.prompts.states(_sentences(seen))
        return latent, context.to(self.device), self._states(seen).to(self.device)

    def _canvases(self, seen: Sequence[Mapping[str, Any]]) -> UInt8[np.ndarray, "B height width 3"]:
        return np.stack([self.codec.canvas(one["frames"]) for one in seen])

    def _states(self, seen: Sequence[Mapping[str, Any]]) -> Float[Tensor, "B P"]:
        with np.errstate(over="ignore"):  # infinities are refused below
            state = self.codec.encode_state(np.stack([self._state(one["state"]) for one in seen]))
        if (far := np.abs(state) > FARTHEST).any():
            dims = sorted(set(np.argwhere(far)[:, -1].tolist()))
            raise WireError("the state is far outside the training data", where=f"observation.state dims {dims}",
                            got=f"{np.abs(state).max():.3g} times the training range", expected=f"at most {FARTHEST:g}",
                            next_step="send it in the units of the training data")  # fmt: skip
        return torch.from_numpy(state)

    def _state(self, given: Any) -> Float32[np.ndarray, " P"]:
        expected, where = f"{self.recipe.model.state_dim} finite numbers", "observation.state"
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused below
                state = np.asarray(given, np.float32)
        except (TypeError, ValueError) as error:
            raise WireError("the state is not a list of numbers", where=where, got=reprlib.repr(given),
                            expected=expected) from error  # fmt: skip
        if state.shape != (self.recipe.model.state_dim,) or not np.isfinite(state).all():
            got = f"shape {state.shape}" + (f", {state.tolist()}" if state.size <= MOST_SHOWN else "")
            raise WireError("the state does not fit the policy", where=where, got=got, expected=expected)
        return state


def _sentences(seen: Sequence[Mapping[str, Any]]) -> list[str]:
    return [one["instruction"] for one in seen]
