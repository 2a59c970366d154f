"""One frame through Wan2.1's VAE: the encoder where there is no past, in a third of the library's work.

Every convolution over time looks into the past only and pads it with zeros, so where there is but one frame only the
kernel's last tap counts: plain 2-D convolutions are left. Pictures lie channels last, as norms and products read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.kernels import choice

WINOGRAD_FROM = 192
"""channels; with fewer, moving the numbers costs what the products save"""
STRIPE = 160 * 1024
"""tiles times channels that Winograd's products take at a time: 10 MiB of them in float32, near a CPU's caches"""


class FrameEncoder(nn.Module):
    """One frame -> the mean of its latents, not standardised.

    What falls away: all taps of a kernel but the last, which read zeros; the temporal downsampling, which the first
    frame skips; the posterior's variance. That leaves 118.5 of 335.9 GMAC at 224x448; `Winograd` saves more.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    @classmethod
    def from_vae(cls, vae: Any, dtype: torch.dtype | None = None) -> FrameEncoder:
        """The encoder of diffusers' AutoencoderKLWan; the weights that it needs are copied, in `dtype` or their own."""
        exact = vae.encoder.state_dict()
        state = exact if dtype is None else {name: tensor.to(dtype) for name, tensor in exact.items()}
        num_blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("down_blocks."))
        middle = ("mid_block.resnets.0.", "mid_block.attentions.0.", "mid_block.resnets.1.")
        blocks = (*(f"down_blocks.{i}." for i in range(num_blocks)), *middle)
        first, last = _conv(state, "conv_in"), _mean_conv(exact, vae.quant_conv.state_dict()).to(dtype)
        norm = _Norm(state["norm_out.gamma"], silu=True)
        return cls([first, *(_block(_part(state, name)) for name in blocks), norm, last])

    @property
    def dtype(self) -> torch.dtype:
        """Of the convolutions and of what is between them; norms are in float32 at least."""
        return next(self.parameters()).dtype

    def forward(self, frame: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B C h w"]:
        return self.layers(frame.contiguous(memory_format=torch.channels_last))


class Winograd(nn.Module):
    """A 3x3 convolution that keeps the picture's size, by Winograd's F(2x2, 3x3): 16 products where there were 36.

    Lavin and Gray, arXiv 1509.09308. On a CPU in float32 or float64 it rounds no worse (measured: half as much).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Of a convolution with its bias; weights are transformed in float64 and rounded once."""
        super().__init__()
        side = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
        mixed = torch.einsum("ai,ocij,bj->abco", side, conv.weight.detach().double(), side).flatten(0, 1)
        self.weight = nn.Parameter(mixed.to(conv.weight.dtype).contiguous(), requires_grad=False)
        assert conv.bias is not None
        self.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c2 h w"]:
        batch, channels, height, width = x.shape
        rows, columns = (height + 1) // 2, (width + 1) // 2
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + width % 2, 1, 1 + height % 2))
        y = x.new_empty(batch, rows, 2, columns, 2, len(self.bias))
        step = max(1, STRIPE // (columns * channels))
        for picture, out in zip(padded, y, strict=True):
            for row in range(0, rows, step):
                self._stripe(picture[2 * row : 2 * (row + step) + 2], out[row : row + step])
        return y.view(batch, 2 * rows, 2 * columns, -1)[:, :height, :width].permute(0, 3, 1, 2)

    def _stripe(self, x: Float[Tensor, "h w c"], y: Float[Tensor, "rows 2 columns 2 c2"]) -> None:
        """Rows of 2x2 tiles of the output, each from 4x4 of the input."""
        rows, _, columns, _, _ = y.shape
        across = x.new_empty(4, rows, *x.shape[1:])
        tiles = x.new_empty(4, 4, rows, columns, x.shape[2])
        _differences([x[i : i + 2 * rows : 2] for i in range(4)], list(across))
        _differences([across[:, :, i : i + 2 * columns : 2] for i in range(4)], list(tiles.unbind(1)))
        products = torch.bmm(tiles.flatten(2, 3).flatten(0, 1), self.weight).view(4, 4, rows, columns, -1)
        for i, line in enumerate(_sums(*products)):
            for j, tile in enumerate(_sums(*line)):
                torch.add(tile, self.bias, out=y[:, i, :, j])


def _differences(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Four neighbours -> what Winograd multiplies."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _sums(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Four products -> two outputs; overwrites the first and the last."""
    return a.add_(b).add_(c), d.neg_().add_(b).sub_(c)


class _Norm(nn.Module):
    """Every place's channels at length sqrt(number of channels), then scaled, and perhaps SiLU; in fp32 at least."""

    def __init__(self, gamma: Tensor, silu: bool) -> None:
        super().__init__()
        weight = gamma.detach().view(1, -1, 1, 1) * gamma.numel() ** 0.5
        self.weight, self.silu = nn.Parameter(weight, requires_grad=False), silu

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        if choice.on(x.device):
            return torch.ops.lightwam.norm_silu(x, self.weight.flatten(), self.silu)
        normed = F.normalize(precise(x), dim=1).to(x.dtype).mul_(self.weight)
        return F.silu(normed, inplace=True) if self.silu else normed


class _Residual(nn.Module):
    def __init__(self, part: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.norm1, self.conv1 = _Norm(part["norm1.gamma"], silu=True), _conv(part, "conv1")
        self.norm2, self.conv2 = _Norm(part["norm2.gamma"], silu=True), _conv(part, "conv2")
        self.shortcut = _conv(part, "conv_shortcut") if "conv_shortcut.weight" in part else nn.Identity()

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c2 h w"]:
        return self.conv2(self.norm2(self.conv1(self.norm1(x)))).add_(self.shortcut(x))


class _Attention(nn.Module):
    """One head over all places of the frame."""

    def __init__(self, part: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.norm = _Norm(part["norm.gamma"], silu=False)
        self.to_qkv, self.proj = _conv(part, "to_qkv"), _conv(part, "proj")

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj(mixed.unflatten(2, x.shape[2:]))


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _block(part: Mapping[str, Tensor]) -> nn.Module:
    """The layer that has these tensors: down-sampling, attention or residual."""
    if "resample.1.weight" in part:
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), _conv(part, "resample.1", stride=2))
    return _Attention(part) if "to_qkv.weight" in part else _Residual(part)


def _conv(part: Mapping[str, Tensor], name: str, stride: int = 1) -> nn.Module:
    weight, bias = part[f"{name}.weight"], part[f"{name}.bias"]
    return _conv_of(weight[:, :, -1] if weight.ndim == 5 else weight, bias, stride)


def _conv_of(weight: Float[Tensor, "out c side side"], bias: Float[Tensor, " out"], stride: int = 1) -> nn.Module:
    rows, columns, side, _ = weight.shape
    conv = nn.Conv2d(columns, rows, side, stride, padding=side // 2 if stride == 1 else 0, device="meta")
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.channels_last), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    wide = side == 3 and stride == 1 and min(rows, columns) >= WINOGRAD_FROM
    cpu = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return Winograd(conv) if wide and cpu else conv


def _mean_conv(encoder: Mapping[str, Tensor], quant: Mapping[str, Tensor]) -> nn.Module:
    """The encoder's last convolution and the 1x1 one behind it as one, for the mean's half of the channels."""
    weight, bias = encoder["conv_out.weight"], encoder["conv_out.bias"]
    half = len(bias) // 2
    taps, offset, mix, shift = (
        tensor.detach().to("cpu", torch.float64)  # rounded once, after the product
        for tensor in (weight[:, :, -1], bias, quant["weight"][:half].flatten(1), quant["bias"][:half])
    )
    return _conv_of(torch.einsum("zk,kcij->zcij", mix, taps).to(weight), (mix @ offset + shift).to(weight))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
