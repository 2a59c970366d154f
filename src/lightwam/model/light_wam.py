"""Light-WAM (arXiv 2606.08242): one video transformer that acts from the present and learns from the future.

z        latents of a clip [B C T h w]; z[:, :, :1] is the present, the rest the future
c        context: text states and one proprioception token [B L+1 E]
memory   c as the cross-attention of every block reads it; one reading serves both passes
x        tokens of a tapped block after its residual adapter [B S D]
a        actions, one chunk [B H A], normalised
n        noise;  sigma its level in [0, 1];  t = 1000 sigma, what the network is told
v        velocity n - z, what the video pass predicts

Two passes share the weights:
  action pass   the present at full resolution, t = 0, up to the last tap; the expert reads a off the taps
  video pass    the clip averaged 2x2 in space, its future noised to sigma; training and imagination only
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


class LightWAM(nn.Module):
    """act: the present -> a chunk of actions. imagine: the present -> a future. loss: what training lowers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dit = DiT(config.backbone)
        self.expert = StateFusionActionExpert(config)
        self.proprio_encoder = _proprio_encoder(config.state_dim, config.backbone.text_dim)

    def act(
        self, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B H A"]:
        """The chunk of normalised actions for what is seen now, in one pass without sampling."""
        context_kv = self.dit.encode_context(self.append_proprio(context, state), stop_at_last_tap=True)
        return self.expert(self.tapped_tokens(latent, context_kv))

    def attention(
        self, latent: Float[Tensor, "B C 1 h w"], context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]
    ) -> list[Float[Tensor, "B heads Q S"]]:
        """What the expert's queries look at in that pass: their attention over the tokens, one entry a tap."""
        context_kv = self.dit.encode_context(self.append_proprio(context, state), stop_at_last_tap=True)
        return self.expert.attention(self.tapped_tokens(latent, context_kv))

    def imagine(
        self,
        latent: Float[Tensor, "B C 1 h w"],
        context: Float[Tensor, "B L E"],
        state: Float[Tensor, "B P"],
        noise: Float[Tensor, "B C T h2 w2"],
        num_steps: int,
    ) -> Float[Tensor, "B C T h2 w2"]:
        """A future at the pooled resolution: `num_steps` Euler steps from noise, the present put back after each."""
        context_kv = self.dit.encode_context(self.append_proprio(context, state))
        present = pool(latent)
        u = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64, device=noise.device)
        sigma = flow.shifted(u, self.config.flow.shift)
        z = flow.keep_first_frame(noise, present)
        for now, then in pairwise(sigma):
            v = self.velocity(z, now.expand(len(z)), context_kv)
            z = flow.keep_first_frame(z + (then - now).to(z.dtype) * v, present)
        return z

    def loss(self, batch: Batch, u: Float[Tensor, " B"], noise: Float[Tensor, "B C T h2 w2"]) -> Losses:
        """The joint objective: video_loss_weight * video + action_loss_weight * action.

        `u` is uniform in (0, 1), one draw a sample, and becomes its noise level; `noise` is standard normal.
        """
        config = self.config
        context_kv = self.dit.encode_context(
            self.append_proprio(batch.context, batch.state), stop_at_last_tap=config.video_loss_weight == 0
        )
        action = self.action_loss(batch, context_kv)
        if config.video_loss_weight == 0:
            return Losses(config.action_loss_weight * action, torch.zeros_like(action), action)
        video = self.video_loss(batch, context_kv, u, noise)
        return Losses(config.video_loss_weight * video + config.action_loss_weight * action, video, action)

    def action_loss(self, batch: Batch, context_kv: tuple[KeyValue, ...]) -> Float[Tensor, ""]:
        """Squared error over the steps that are neither padding nor beyond the supervised prefix."""
        return self.action_error(self.expert(self.tapped_tokens(batch.present, context_kv)), batch).mean()

    def action_error(self, a: Float[Tensor, "B H A"], batch: Batch) -> Float[Tensor, " B"]:
        """Every sample's mean squared error of a predicted chunk."""
        error = (at_least_float32(a) - batch.action).square().mean(dim=2)
        step = torch.arange(error.shape[1], device=error.device)
        return flow.masked_mean(error, ~batch.action_is_pad & (step < self.config.supervised_prefix))

    def video_loss(
        self,
        batch: Batch,
        context_kv: tuple[KeyValue, ...],
        u: Float[Tensor, " B"],
        noise: Float[Tensor, "B C T h2 w2"],
    ) -> Float[Tensor, ""]:
        """Flow matching of the future at the pooled resolution; padded latent frames do not count."""
        sigma = flow.shifted(u, self.config.flow.shift)
        v = self.velocity(flow.mix(batch.clip, noise, sigma), sigma, context_kv)
        return self.video_error(v[:, :, 1:], batch, noise, sigma).mean()

    def video_error(
        self,
        v: Float[Tensor, "B C later h2 w2"],
        batch: Batch,
        noise: Float[Tensor, "B C T h2 w2"],
        sigma: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Every sample's weighted mean squared error of the later frames' predicted velocity."""
        error = (at_least_float32(v) - (noise - batch.clip)[:, :, 1:]).square().mean(dim=(1, 3, 4))
        weight = flow.time_weight(self.config.flow.num_times * sigma, self.config.flow)
        keep = ~flow.latent_frame_is_pad(batch.frame_is_pad, batch.clip.shape[2])
        return flow.masked_mean(error, keep) * weight.to(error.dtype)

    def tapped_tokens(
        self, latent: Float[Tensor, "B C 1 h w"], context_kv: tuple[KeyValue, ...]
    ) -> list[Float[Tensor, "B S D"]]:
        """The action pass up to the last tap: the adapted tokens that the expert reads."""
        return [tap.adapted for tap in self.dit(latent, None, context_kv, stop_at_last_tap=True).taps]

    def velocity(
        self, z: Float[Tensor, "B C T h w"], sigma: Float[Tensor, " B"], context_kv: tuple[KeyValue, ...]
    ) -> Float[Tensor, "B C T h w"]:
        """The video pass: where noised latents, their first frame clean, move as noise grows."""
        v = self.dit(z, self.config.flow.num_times * sigma, context_kv).velocity
        assert v is not None
        return v

    def append_proprio(self, context: Float[Tensor, "B L E"], state: Float[Tensor, "B P"]) -> Float[Tensor, "B L1 E"]:
        """Text states and, last, the proprioception token."""
        weight = self.proprio_encoder.weight
        token = self.proprio_encoder(state.to(weight.dtype))[:, None]
        return torch.cat((context.to(weight.dtype), token), dim=1)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part, which sum to `total`, and how many of them are `trainable`."""
        parts = dict.fromkeys(("blocks", "lora", "adapters", "head", "embeddings", "expert", "proprio_encoder"), 0)
        for name, parameter in self.named_parameters():
            parts[part_of(name)] += parameter.numel()
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return parts | {"total": sum(parts.values()), "trainable": trainable}


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to."""
    if not name.startswith("dit."):
        return name.split(".")[0]
    if "lora_" in name:
        return "lora"
    parts = {"blocks": "blocks", "adapters": "adapters", "proj_out": "head", "scale_shift_table": "head"}
    return parts.get(name.split(".")[1], "embeddings")


def _proprio_encoder(state_dim: int, width: int) -> nn.Linear:
    """Build the layer state -> token. Without a state the token is the bias, which starts at zero and is trained."""
    if state_dim:
        return nn.Linear(state_dim, width)
    encoder = nn.Linear(1, width)  # not 0: torch's initialisation warns about empty weights
    encoder.in_features, encoder.weight = 0, nn.Parameter(encoder.weight.detach()[:, :0].clone())
    nn.init.zeros_(encoder.bias)
    return encoder
