"""A trained policy: observation in, chunk of robot actions out.

Codec, latents and text encoder are those of training, saved with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from lightwam.config.checks import check_recipe
from lightwam.config.schema import EvalConfig, Recipe, SimConfig, with_simulator
from lightwam.data.codec import Codec, to_pictures
from lightwam.data.facts import DatasetFacts
from lightwam.encoders.frozen import Prompts
from lightwam.encoders.future import decode_future
from lightwam.engine.engine import Engine
from lightwam.errors import ConfigError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import hub, run_directory
from lightwam.policy.actor import Actor, PlainActor
from lightwam.policy.episode import Episode
from lightwam.policy.observations import ObservationLike, encode_states, observation_fields, read_states
from lightwam.system.devices import resolve_device, use_gpu
from lightwam.types import LatentCodec, to_pixels

Inputs = tuple[UInt8[Tensor, "B height width 3"], list[str], Float[Tensor, "B P"]]
"""canvases, instructions and normalised states"""


class Policy:
    """A trained policy that acts, imagines and shows its attention. Stateless: `act` depends on one observation only.

    >>> import numpy as np
    >>> from lightwam import Policy
    >>> policy = Policy.load("runs/point")  # or a Hub id: "someone/lightwam-point"
    >>> policy.cameras, policy.recipe.model.state_dim
    (('top',), 2)
    >>> picture = np.zeros((32, 32, 3), np.uint8)  # height x width x 3, RGB, upright
    >>> observation = {"frames": {"top": picture}, "state": [0.5, -0.5], "instruction": "move to the red dot"}
    >>> chunk = policy.act(observation)  # the next 8 actions, in robot units
    >>> chunk.shape, chunk.dtype
    ((8, 2), dtype('float32'))
    >>> policy.imagine(observation).shape  # a possible future of the camera: frames, height, width, RGB
    (5, 32, 32, 3)
    >>> episode = policy.begin()  # one action at a time
    >>> bool((episode.action(observation) == chunk[0]).all())
    True
    """

    def __init__(
        self,
        recipe: Recipe,
        codec: Codec,
        latents: LatentCodec,
        prompts: Prompts,
        actor: Actor,
        step: int,
        run: Path | None = None,
        *,
        averaged: bool = False,
        facts: DatasetFacts | None = None,
    ) -> None:
        """`actor` is a `PlainActor` or, to act faster but do nothing else, an `Engine`.

        `step`, `run` and `averaged` say which checkpoint it is of, and whether its weights are their moving average.
        `facts`: what the run knows of its robot and data, if anything.
        """
        self.recipe, self.codec, self.latents, self.prompts, self.actor = recipe, codec, latents, prompts, actor
        self.step, self.run, self.averaged, self.facts = step, run, averaged, facts
        self.device, self.computes = actor.device, actor.description

    @classmethod
    def load(
        cls,
        run: Path | str,
        step: int | None = None,
        *,
        ema: bool = True,
        device: str = "auto",
        weights: str | None = None,
        engine: bool = False,
        int8: bool = False,
        precision: str | None = None,
    ) -> Policy:
        """Load the policy of a run directory, or of a run on the Hugging Face Hub, at `step`.

        step: by default the best on held-out episodes, if the run has any, else the newest.
        run: a path, or a Hub id OWNER/NAME or OWNER/NAME@REVISION, which needs the extra `hub`: the files are fetched
            once and kept in the Hub's cache. A string is a Hub id if it has that form and no such path exists.
        ema: use the moving average of the weights if training kept one.
        device: "auto" (a GPU if there is one), "cuda" or "cpu".
        weights: folder of the pretrained encoders, if not the recipe's.
        engine: act faster, with the same actions, but do nothing else; `int8` needs less memory for it, and changes
            the actions slightly.
        precision: "float32" or "bfloat16"; by default the recipe's on a GPU, and float32 on a CPU.

        CheckpointError when the run is missing, cannot be fetched, is damaged, or its weights do not fit its recipe;
        ConfigError for `int8` without `engine`.
        """
        if int8 and not engine:
            step_ = "engine=True as well (lightwam eval: --engine --int8)"
            raise ConfigError("only the engine keeps weights in 8 bits", where="Policy.load", next_step=step_)
        run, target = hub.find_run(run, step), resolve_device(device)
        recipe = run_directory.read_recipe(run)
        recipe = recipe if weights is None else replace(recipe, weights=weights)
        codec, latents = run_directory.open_processing(run, recipe, target)
        saved = run_directory.load(run, step, training=False)
        model = LightWAM(recipe.model)
        run_directory.load_strict(model, run_directory.run_weights(run, saved, ema=ema), run)
        dtype = getattr(torch, precision or (recipe.train.precision if target.type == "cuda" else "float32"))
        use_gpu(target, dtype)
        prompts = Prompts(recipe, run_directory.read_tensors(run / run_directory.PROMPTS), target)
        actor: Actor
        if engine:  # folded from the weights as saved, before they are rounded to `dtype`
            actor = Engine(model, latents, prompts.states, target, dtype, int8=int8)
        else:
            actor = PlainActor(model.place(target, dtype), latents, prompts.states)
        averaged = ema and saved.ema is not None
        facts = run_directory.read_facts(run)
        return cls(recipe, codec, latents, prompts, actor, saved.step, run, averaged=averaged, facts=facts)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that an observation must have frames of."""
        return self.codec.cameras

    @property
    def plain(self) -> PlainActor:
        """The actor by the plain model; ConfigError for a policy loaded with `engine=True`."""
        if self.actor.plain is None:
            step = "Policy.load(run) without the engine also imagines and shows attention"
            raise ConfigError("this policy was loaded for acting alone", got="engine=True", next_step=step)
        return self.actor.plain

    @property
    def model(self) -> LightWAM:
        """The plain model, as for `plain`."""
        return self.plain.model

    @property
    def n_obs_steps(self) -> int:
        """Control steps that it acts on: the present one."""
        return 1

    def identity(self) -> dict[str, Any]:
        """Return what an evaluation's result records of the policy: recipe, step, weights and what computes."""
        return {
            "recipe": self.recipe.name,
            "checkpoint_step": self.step,
            "weights": "ema" if self.averaged else "last",
            "computes": self.computes,
        }

    def check_evaluation(self, sim: SimConfig | None, settings: EvalConfig) -> None:
        """Raise ConfigError when a simulator or settings of an evaluation do not fit the policy's recipe."""
        check_recipe(with_simulator(self.recipe, sim, settings))

    def begin(self, replan: int | None = None) -> Episode:
        """Begin an episode, which returns one action at a time and asks for a new chunk after `replan` actions.

        `replan` is the recipe's by default; ConfigError when it exceeds the steps that training supervised.
        """
        num_steps, most = self.recipe.eval.replan if replan is None else replan, self.recipe.model.supervised_prefix
        if not 1 <= num_steps <= most:
            expected = f"1 to {most}, the steps that training supervised"
            raise ConfigError("replan is out of range", where="replan", got=num_steps, expected=expected)
        return Episode(self.act, num_steps)

    def act(self, observation: ObservationLike) -> Float32[np.ndarray, "H A"]:
        """Return one chunk of actions in robot units; WireError when the observation does not fit the policy."""
        return self.act_batch([observation])[0]

    @torch.inference_mode()
    def act_batch(self, observations: Sequence[ObservationLike]) -> Float32[np.ndarray, "B H A"]:
        """Return one chunk of actions for each of several robots."""
        fields, states = self._read(observations)
        action = self.actor.act(*self._inputs(fields, states))
        return self.codec.decode_action(action.float().cpu().numpy(), states)

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Prepare a GPU for batches of these sizes, whose first ones would take seconds each; nothing on a CPU."""
        sentences = self.prompts.sentences() or ([*self.facts.sentences] if self.facts is not None else [])
        canvas = torch.zeros(1, *self.recipe.codec.canvas, 3, dtype=torch.uint8)
        self.actor.warm(batch_sizes, canvas, sentences, torch.zeros(1, self.recipe.model.state_dim))

    @torch.inference_mode()
    def imagine(
        self, observation: ObservationLike, seed: int = 0, num_steps: int = 20, num_chunks: int = 1
    ) -> UInt8[np.ndarray, "F height width 3"]:
        """Return a possible future as canvases `video_stride` control steps apart, the present first.

        Different seeds give different futures; `num_steps` is the number of Euler steps from noise. A future is as long
        as a chunk of actions. With more `num_chunks`, each further one begins at the last imagined canvas. Its state
        is then the chunk's last target in the codec's `relative_action_dims`, and the observation's in others.
        """
        fields, states = self._read([observation])
        canvas, instruction, _ = self._inputs(fields, states)
        clips = [canvas[:, None].numpy()]
        for number in range(num_chunks):
            inputs = torch.from_numpy(clips[-1][:, -1]), instruction, self._normalised(states)
            future = self._future(inputs, self.recipe.latent_shape[1], seed + number, num_steps)
            present = to_pixels(inputs[0][:, None]).to(future)
            clips.append(to_pictures(decode_future(self.latents, present, future))[:, 1:])
            if number + 1 < num_chunks:
                states = self._state_after(inputs, states)
        return np.concatenate(clips, axis=1)[0]

    @torch.inference_mode()
    def predict_next(
        self, observations: Sequence[ObservationLike]
    ) -> tuple[Float32[np.ndarray, "B C h2 w2"], Float32[np.ndarray, "B C h2 w2"]]:
        """Return the present's pooled latents, and these plus the change that the video pass predicts next.

        One Euler step from a fixed noise: from pure noise, the velocity leads to the mean of the futures that the model
        considers possible. The surprise watch compares it with the frames that follow.
        """
        future = self._future(self.inputs(observations), 2, 0, 1).float()
        present = future[:, :, :1]
        expected = present + (future[:, :, 1:] - self.latents.motionless(present))
        return present[:, :, 0].cpu().numpy(), expected[:, :, 0].cpu().numpy()

    @torch.inference_mode()
    def attention(self, observation: ObservationLike) -> list[Float32[np.ndarray, "queries rows cols"]]:
        """Return, for every tap, the attention of its queries over the picture's tokens: mean over heads, sums to 1.

        With model.foresight, what foreseen tokens get is left out.
        """
        latent, context, state = self.plain.encode(*self.inputs([observation]))
        rows, columns = (s // p for s, p in zip(latent.shape[3:], self.recipe.model.backbone.patch[1:], strict=True))
        maps = [a[0, ..., : rows * columns].mean(0).float() for a in self.model.attention(latent, context, state)]
        return [normalize(a, p=1, dim=-1).unflatten(-1, (rows, columns)).cpu().numpy() for a in maps]

    def _future(self, inputs: Inputs, num_frames: int, seed: int, num_steps: int) -> Float[Tensor, "B C T h2 w2"]:
        """Sample futures of what `inputs` returned, all from the same noise."""
        latent, context, state = self.plain.encode(*inputs)
        shape = (1, latent.shape[1], num_frames, latent.shape[3] // 2, latent.shape[4] // 2)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(latent)
        return self.model.imagine(latent, context, state, noise.expand(len(latent), -1, -1, -1, -1), num_steps)

    def _state_after(self, inputs: Inputs, states: Float32[np.ndarray, "B P"]) -> Float32[np.ndarray, "B P"]:
        """Return the states, in robot units, after the chunk of these inputs, as far as its targets tell them."""
        dims, after = list(self.codec.config.relative_action_dims), states.copy()
        if dims:
            action = self.codec.decode_action(self.actor.act(*inputs).float().cpu().numpy(), states)
            after[:, dims] = action[:, -1, dims]
        return after

    def inputs(self, observations: Sequence[ObservationLike]) -> Inputs:
        """Return canvases, instructions and normalised states; WireError for an observation that does not fit."""
        return self._inputs(*self._read(observations))

    def _read(self, seen: Sequence[ObservationLike]) -> tuple[list[Mapping[str, Any]], Float32[np.ndarray, "B P"]]:
        """Return the observations' fields, and their states in robot units."""
        state_dim = self.recipe.model.state_dim
        fields = [observation_fields(observation, state_dim) for observation in seen]
        return fields, read_states([each["state"] for each in fields], state_dim)

    def _inputs(self, fields: Sequence[Mapping[str, Any]], states: Float32[np.ndarray, "B P"]) -> Inputs:
        canvases = np.stack([self.codec.canvas(each["frames"]) for each in fields])
        return torch.from_numpy(canvases), [each["instruction"] for each in fields], self._normalised(states)

    def _normalised(self, states: Float32[np.ndarray, "B P"]) -> Float[Tensor, "B P"]:
        return torch.from_numpy(encode_states(self.codec, states))
