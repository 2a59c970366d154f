"""Light-WAM as a policy of LeRobot: LeRobot's batches, and lightwam's own model, losses and latents."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed
from jaxtyping import Float, UInt8
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from lerobot_policy_lightwam.configuration_lightwam import LightWAMConfig
from lerobot_policy_lightwam.step_inputs import DrawCount, LastNumbers, PromptTable
from lightwam import ConfigError, LightWAM, WireError
from lightwam.config.schema import PcaConfig
from lightwam.data.codec import Codec, affine, compose_canvas, to_pictures
from lightwam.encoders.dct import DctLatents
from lightwam.encoders.frozen import Prompts, encode_clip, fit_latents, open_latents, vae_identity
from lightwam.encoders.future import decode_future
from lightwam.engine.packed_step import packed_loss
from lightwam.policy.run_directory import load_strict
from lightwam.training.batches import flow_draw
from lightwam.training.footprint import num_with_video
from lightwam.training.wan_backbone import load_backbone
from lightwam.types import SINGLE_PROCESS, Batch, LatentCodec, Rank, to_pixels

TASK = "task"
FIT_FRAMES = 256
"""pictures of the first batch, at most, that the DCT's statistics are measured on; PCA takes all its clips"""


class LightWAMPolicy(PreTrainedPolicy):
    """LeRobot's interface to lightwam's model, which is `model`."""

    config_class = LightWAMConfig
    name = "lightwam"

    def __init__(self, config: LightWAMConfig, dataset_stats: Any = None, dataset_meta: Any = None) -> None:
        """Check rate and sentences of `dataset_meta`; `dataset_stats` are the processor's and are not used.

        A new policy gets its backbone from the recipe's pretrained weights, if it names some.
        """
        super().__init__(config)
        fresh = config.settled is None
        self.recipe = config.settle(None if dataset_meta is None else float(dataset_meta.fps))
        self.model = LightWAM(self.recipe.model)
        if fresh and self.recipe.weights:
            load_backbone(self.model.dit, self.recipe.weights)
        # with the weights, so that training goes on from a checkpoint with the random numbers that would have followed
        self.drawn: Tensor
        self.register_buffer("drawn", torch.tensor([torch.initial_seed() % 2**31, 0]))
        self._draw_count = DrawCount()
        self._parts = LastNumbers()
        self._prompts = PromptTable(Prompts(self.recipe, {}, config.device))
        if fresh and dataset_meta is not None:
            self._prompts.rows([str(task) for task in dataset_meta.tasks.index])  # one too long is refused now
        self._codec = None if config.relative is None else Codec.from_dict(config.relative, "policy.relative")
        self._latents: LatentCodec | None = None
        self.last_predicted_latents: Float[Tensor, "B C T h2 w2"] | None = None
        self._presents: list[UInt8[Tensor, "1 height width 3"]] = []
        self._queue: deque[Tensor] = deque()

    @classmethod
    def _load_as_safetensor(
        cls, model: LightWAMPolicy, model_file: str, map_location: str, strict: bool
    ) -> LightWAMPolicy:
        """Load strictly in any case: CheckpointError lists every tensor that does not fit."""
        load_strict(model, safetensors.torch.load_file(model_file), Path(model_file))
        return model

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        """Return the trained parameters, which a frozen backbone's are not."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def reset(self) -> None:
        """Begin a new episode."""
        self._queue.clear()
        self._presents.clear()
        self.last_predicted_latents = None

    def forward(self, batch: Mapping[str, Any]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Return the joint loss of a batch of windows, and its two parts; its noise depends on seed and step only.

        On a GPU the parts are those of the call before: this one's are not there yet, and would be waited for.
        """
        if self.config.relative is not None:
            what, step = "relative actions cannot be trained by LeRobot", "lightwam train --start-from RUN"
            raise ConfigError(what, where="policy.relative", next_step=step)
        windows = self.windows(batch)
        (seed, step), (rank, size) = self._draw_count.next(self.drawn, self.training), processes()
        u, noise = flow_draw(seed, step, size * len(windows.state), windows.clip, rank)
        train, videos = self.recipe.train, slice(num_with_video(self.recipe.train, len(u)))
        settings = {"checkpointing": train.checkpointing, "compiled": train.compile}
        losses = packed_loss(self.model, windows, u[videos], noise[videos], **settings)
        shown = self._parts.next(torch.stack((losses.video, losses.action)).detach())
        return losses.total, dict(zip(("loss_video", "loss_action"), shown, strict=True))

    def windows(self, batch: Mapping[str, Any]) -> Batch:
        """Convert LeRobot's batch, which the processor has normalised, to lightwam's; encode its pictures."""
        frames = len(self.config.observation_delta_indices)
        canvas = self.canvases(batch)
        if canvas.shape[1] != frames:
            what = "a clip must have the recipe's number of frames"
            raise WireError(what, where="forward", got=canvas.shape[1], expected=frames)
        camera = self.config.cameras[self.recipe.codec.places[0].camera]
        with torch.no_grad():
            pixels = to_pixels(canvas)
            video = encode_clip(self.latents(pixels), pixels)
        rows = self._prompts.rows(_tasks(batch))
        return Batch(
            present=video.present,
            clip=video.clip,
            context=self._prompts.context(rows, pixels.device),
            is_token=self._prompts.is_token[rows],
            state=self._state(batch),
            action=_of(batch, ACTION),
            action_is_pad=_of(batch, f"{ACTION}_is_pad"),
            frame_is_pad=_of(batch, f"{camera}_is_pad"),
        )

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Float[Tensor, "B prefix A"]:
        """Return the supervised steps of a chunk, normalised.

        With `save_predicted_video` the future is imagined as well.
        """
        canvas = self.canvases(batch)[:, :1]
        pixels = to_pixels(canvas)
        latent = self.latents(pixels).encode(pixels)
        context = self._prompts.context(self._prompts.rows(_tasks(batch)), pixels.device)
        state = self._state(batch)
        if not state.isfinite().all():
            raise WireError("the state is not finite", where=OBS_STATE, got=state.tolist(), expected="finite numbers")
        if self.config.save_predicted_video:
            self.last_predicted_latents = self._imagine(latent, context, state)
            self._presents.append(canvas[0])
        chunk = self.model.act(latent, context, state)[:, : self.recipe.model.supervised_prefix].float()
        return self._targets(chunk, state)

    def _targets(self, chunk: Float[Tensor, "B prefix A"], state: Float[Tensor, "B P"]) -> Float[Tensor, "B prefix A"]:
        """Convert relative actions to targets, all normalised: they are relative to the state that began the chunk."""
        if self._codec is None:
            return chunk
        offset, scale = affine(self._codec.config.state_norm, self._codec.state)
        robot_state = (state.double().cpu().numpy() * scale + offset).astype(np.float32)
        targets = self._codec.decode_action(chunk.cpu().numpy(), robot_state)
        offset, scale = affine(self._codec.config.action_norm, self._codec.action)
        return torch.from_numpy((targets - offset) / scale).to(chunk)

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any]) -> Float[Tensor, "B A"]:
        """Return the next action; after `n_action_steps` of a chunk a new one is computed."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    @torch.no_grad()
    def decode_predicted_latents(self, latents: Float[Tensor, "B C T h2 w2"]) -> UInt8[Tensor, "N height width 3"]:
        """Decode imagined futures, concatenated in time, to the first robot's video, a picture a control step.

        Each future contributes the steps that were executed before the next one, so the video is in step with the
        episode. The futures must be the newest ones of this episode: the pictures that they began at are shown too.
        """
        each = 1 + self._num_later
        futures = latents[0].unflatten(1, (-1, each)).transpose(0, 1)
        if len(futures) > len(self._presents):
            what, got = "these futures must be of the present episode", f"{len(futures)} futures"
            raise ConfigError(what, where="latents", got=got, expected=f"at most {len(self._presents)}")
        assert self._latents is not None and self.config.n_action_steps is not None
        present = to_pixels(torch.stack(self._presents[-len(futures) :])).to(self.device)
        clips = to_pictures(decode_future(self._latents, present, futures.to(self.device)))
        shown = torch.arange(self.config.n_action_steps) // self.recipe.codec.video_stride
        return torch.from_numpy(clips)[:, shown].flatten(0, 1)

    def canvases(self, batch: Mapping[str, Any]) -> UInt8[Tensor, "B F height width 3"]:
        """Return all cameras' pictures, as bytes as they were recorded, on the recipe's canvas."""
        codec, cameras = self.recipe.codec, self.config.cameras
        clips = {place.camera: clip_bytes(batch, cameras[place.camera]) for place in codec.places}
        sizes = next(iter(clips.values())).shape[:2]
        return compose_canvas(codec, {camera: clip.flatten(0, 1) for camera, clip in clips.items()}).unflatten(0, sizes)

    def latents(self, pixels: Float[Tensor, "B 3 F height width"]) -> LatentCodec:
        """Return the latent codec; the DCT's statistics are measured once, on the first training batch."""
        if self._latents is None:
            if self.config.measured is None:
                self.config.measured = _same_everywhere(self._measure(pixels))
            self._latents = open_latents(self.recipe, self.config.measured, "policy.measured", pixels.device)
        return self._latents

    def _measure(self, pixels: Float[Tensor, "B 3 F height width"]) -> dict[str, Any]:
        if self.recipe.latents.pretrained:
            return dict(vae_identity(self.recipe))
        if not self.training:
            what, step = "this policy was never trained", "lerobot-train, or --policy.path of a checkpoint"
            raise ConfigError(what, where="policy.measured", got="no statistics of latents", next_step=step)
        if isinstance(self.recipe.latents, PcaConfig):
            return fit_latents(self.recipe.latents, to_pictures(pixels))
        pictures = pixels.transpose(1, 2).flatten(0, 1)[:FIT_FRAMES]
        return dict(DctLatents.fit(self.recipe.latents, pictures).to_dict())

    def _imagine(
        self, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B C T h2 w2"]:
        batch, channels, _, height, width = latent.shape
        shape = (batch, channels, 1 + self._num_later, height // 2, width // 2)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.config.imagine_seed))
        return self.model.imagine(latent, context, state, noise.to(latent.device), self.config.num_imagine_steps)

    @property
    def _num_later(self) -> int:
        """Return the latent frames of a future without the present: four video frames each."""
        return self.recipe.model.horizon // self.recipe.codec.video_stride // 4

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    def _state(self, batch: Mapping[str, Any]) -> Float[Tensor, "B P"]:
        state: Tensor = _of(batch, OBS_STATE)
        return state[:, 0] if state.ndim == 3 else state


def _tasks(batch: Mapping[str, Any]) -> list[str]:
    return [str(task) for task in _of(batch, TASK)]


def _of(batch: Mapping[str, Any], key: str) -> Any:
    if key not in batch:
        raise WireError("a key is missing", where="batch", got=sorted(batch), expected=key)
    return batch[key]


def clip_bytes(batch: Mapping[str, Any], key: str) -> UInt8[Tensor, "B F _h _w 3"]:
    """Convert a camera's pictures, floats in [0, 1] with channels first, to the bytes that LeRobot read."""
    pictures = _of(batch, key)
    pictures = pictures[:, None] if pictures.ndim == 4 else pictures
    if pictures.ndim != 5 or pictures.shape[2] != 3 or not pictures.is_floating_point():
        got, expected = f"{pictures.dtype} {tuple(pictures.shape)}", "floats in [0, 1], (B, 3, H, W) or (B, F, 3, H, W)"
        raise WireError("these are not pictures of a camera", where=key, got=got, expected=expected)
    return pictures.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2)


def processes() -> Rank:
    """Return this process's rank and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Rank(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return SINGLE_PROCESS


def _same_everywhere(measured: dict[str, Any]) -> dict[str, Any]:
    """Broadcast what rank 0 measured."""
    shared = [measured]
    if processes().size > 1:
        torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]
