"""Light-WAM (arXiv 2606.08242): one video transformer that acts from the present and learns from the future.

z            latents of a clip [B C T h w]; z[:, :, :1] is the present, the rest the future
context      text states and, last, one proprioception token [B L+1 E]
context_kv   keys and values of the context for the cross-attention of every block; both passes share them
a            one chunk of normalised actions [B H A]
noise        standard normal, mixed in at level sigma in [0, 1];  time = 1000 sigma is the input of the network
v            velocity noise - z, predicted by the video pass

Two passes share the weights:
  action pass   the present at full resolution, time 0, up to the last tap; the action expert decodes a from the taps.
                In other models than the paper's it also reads foresight.py's tokens, or the state (state_reader.py)
  video pass    the clip averaged 2x2 in space, its future noised to sigma; only for training and imagination
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.config.schema import ModelConfig
from lightwam.model import flow
from lightwam.model.action_expert import StateFusionActionExpert
from lightwam.model.dit import DiT, KeyValue
from lightwam.model.layers import at_least_float32
from lightwam.types import Batch, Losses, pool

FLOAT32_PARTS = ("time_embedder", "time_proj", "scale_shift_table")
"""the embedding of times, and the tables added to it: in float32 at least"""


class LightWAM(nn.Module):
    """The world-action model: `act` returns a chunk of actions, `imagine` a future, `loss` the joint objective."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dit = DiT(config.backbone)
        self.expert = StateFusionActionExpert(config)
        self.proprio_encoder = _proprio_encoder(config.state_dim, config.backbone.text_dim)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most weights, and of the tokens."""
        return self.dit.patch_embedding.weight.dtype

    def place(self, device: torch.device | str, dtype: torch.dtype) -> LightWAM:
        """Move the model to `device` and round its weights to `dtype`, but for those of `dtype_of`; return it."""
        self.to(device)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(dtype_of(name, dtype))
        return self

    def act(
        self, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """Return one chunk of normalised actions: a single action pass, without sampling."""
        return self.expert(self.tapped_tokens(latent, context, state), state)

    def attention(
        self, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
    ) -> list[Float[Tensor, "B heads Q S"]]:
        """Return the attention of the expert's queries over the tokens of the action pass, one entry a tap."""
        return self.expert.attention(self.tapped_tokens(latent, context, state))

    def imagine(
        self,
        latent: Float[Tensor, "B C 1 h w"],
        context: Float[Tensor, "B L E"],
        state: Float[Tensor, "B P"],
        noise: Float[Tensor, "B C T h2 w2"],
        num_steps: int,
    ) -> Float[Tensor, "B C T h2 w2"]:
        """Sample a future at the pooled resolution: Euler steps from noise, the present restored after each."""
        context_kv = self.dit.encode_context(self.append_proprio(context, state))
        present = pool(latent)
        u = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64, device=noise.device)
        z = flow.keep_first_frame(noise, present)
        for sigma, next_sigma in pairwise(flow.shifted(u, self.config.flow.shift)):
            v = self.velocity(z, sigma.expand(len(z)), context_kv)
            z = flow.keep_first_frame(z + (next_sigma - sigma).to(z.dtype) * v, present)
        return z

    def loss(self, batch: Batch, u: Float[Tensor, " V"], noise: Float[Tensor, "V C T h2 w2"]) -> Losses:
        """Return the joint objective, video_loss_weight * video + action_loss_weight * action, and its two losses.

        `u`, uniform in (0, 1), sets the noise level of the first V samples, which have a video pass; `noise` is normal.
        """
        config = self.config
        context = self.append_proprio(batch.context, batch.state)
        context_kv = self.dit.encode_context(context, stop_at_last_tap=config.video_loss_weight == 0)
        a = self.expert(self.action_pass(batch.present, context_kv), batch.state)
        if config.video_loss_weight == 0:
            action = self.action_error(a, batch).mean()
            return Losses(config.action_loss_weight * action, torch.zeros_like(action), action)
        sigma = flow.shifted(u, config.flow.shift)
        context_kv = tuple((k[: len(u)], v[: len(u)]) for k, v in context_kv)
        v = self.velocity(flow.mix(batch.clip[: len(u)], noise, sigma), sigma, context_kv)
        return self.losses(a, v[:, :, 1:], batch, noise, sigma)

    def losses(
        self,
        a: Float[Tensor, "B H A"],
        v: Float[Tensor, "V C later h2 w2"],
        batch: Batch,
        noise: Float[Tensor, "V C T h2 w2"],
        sigma: Float[Tensor, " V"],
    ) -> Losses:
        """Return the joint objective of predicted actions and of the first V samples' velocity, and its two losses."""
        action = self.action_error(a, batch).mean()
        batch = batch.rows(0, len(v))
        error = (at_least_float32(v) - (noise - batch.clip)[:, :, 1:]).square().mean(dim=(1, 3, 4))
        weight = flow.time_weight(self.config.flow.num_times * sigma, self.config.flow)
        keep = ~flow.latent_frame_is_pad(batch.frame_is_pad, batch.clip.shape[2])
        video = (flow.masked_mean(error, keep) * weight.to(error.dtype)).mean()
        total = self.config.video_loss_weight * video + self.config.action_loss_weight * action
        return Losses(total, video, action)

    def action_error(self, a: Float[Tensor, "B H A"], batch: Batch) -> Float[Tensor, " B"]:
        """Return each sample's error of actions, squared or absolute, over supervised steps that are not padding."""
        difference = at_least_float32(a) - batch.action
        error = (difference.abs() if self.config.action_loss == "l1" else difference.square()).mean(dim=2)
        step = torch.arange(error.shape[1], device=error.device)
        return flow.masked_mean(error, ~batch.action_is_pad & (step < self.config.supervised_prefix))

    def tapped_tokens(
        self, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B S D"], ...]:
        """Run the action pass up to the last tap; return the tokens of every tap, the present's, then foreseen ones."""
        context_kv = self.dit.encode_context(self.append_proprio(context, state), stop_at_last_tap=True)
        return self.action_pass(latent, context_kv)

    def action_pass(
        self, latent: Float[Tensor, "B C 1 h w"], context_kv: tuple[KeyValue, ...]
    ) -> tuple[Float[Tensor, "B S D"], ...]:
        """Return the tapped tokens, given the encoded context."""
        foresight = self.config.foresight
        time = torch.full((1,), float(self.config.flow.num_times), device=latent.device) if foresight else None
        return self.dit(latent, time, context_kv, stop_at_last_tap=True, foresight=foresight).taps

    def velocity(
        self, z: Float[Tensor, "B C T h w"], sigma: Float[Tensor, " B"], context_kv: tuple[KeyValue, ...]
    ) -> Float[Tensor, "B C T h w"]:
        """Run the video pass: predict the velocity of latents whose later frames are noised to `sigma`."""
        v = self.dit(z, self.config.flow.num_times * sigma, context_kv).velocity
        assert v is not None
        return v

    def append_proprio(self, context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]) -> Float[Tensor, "B L1 E"]:
        """Append the proprioception token to the text states."""
        weight = self.proprio_encoder.weight
        token = self.proprio_encoder(state.to(weight.dtype))[:, None]
        return torch.cat((context.to(weight.dtype), token), dim=1)


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a weight in a model of `dtype`: float32 for what times become, else `dtype`.

    A time's few numbers shift and scale all tokens alike, so that their rounding would not average out. Wan's published
    weights are in float32 there too.
    """
    is_time = any(part in FLOAT32_PARTS for part in name.split("."))
    return torch.promote_types(dtype, torch.float32) if is_time else dtype


def _proprio_encoder(state_dim: int, width: int) -> nn.Linear:
    """Return the layer state -> token. Without a state the token is the bias, which starts at zero and is trained."""
    if state_dim:
        return nn.Linear(state_dim, width)
    encoder = nn.Linear(1, width)  # not 0: torch's initialisation warns about empty weights
    encoder.in_features, encoder.weight = 0, nn.Parameter(encoder.weight.detach()[:, :0].clone())
    nn.init.zeros_(encoder.bias)
    return encoder
