"""Foresight: tokens of the frames after the present in the action pass (`ModelConfig.foresight`, 0 in the paper).

Of a future frame nothing is known: its latents are zeros, the mean of the noise, and its time is that of noise level 1.
So nothing is sampled, and the action pass stays a single one. Attention is as in the video pass, first over first and
later over first and later: the present's tokens are those of a model without foresight.

Future frames are pooled, as in the video pass, but here they attend to a present at full resolution. RoPE therefore
counts in tokens of that resolution: a pooled token is at the centre of the POOL x POOL tokens of the present that it
covers, (2 i + 1/2, 2 j + 1/2). With the video pass's own (i, j) its nearest neighbours would be in another part of the
picture. The frames are 1 to N, as there.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from lightwam.config.schema import POOL
from lightwam.model.layers import rope_3d


def foreseen(
    bias: Float[Tensor, " D"], num_frames: int, rows: int, columns: int, head_dim: int
) -> tuple[Float[Tensor, "1 S2 D"], Complex[Tensor, "S2 1 pairs"]]:
    """Return tokens and RoPE of the frames after a present of rows x columns tokens.

    `bias` is the patch embedding's, and so the token of a patch of zeros.
    """
    rows, columns = rows // POOL, columns // POOL
    rope = rope_3d(num_frames, rows, columns, head_dim, bias.device, bias.dtype, first_frame=1, pool=POOL)
    return bias.expand(1, len(rope), -1), rope


def append_foreseen(
    x: Float[Tensor, "B 1 n D"],
    rope: Complex[Tensor, "S 1 pairs"],
    future: tuple[Float[Tensor, "1 S2 D"], Complex[Tensor, "S2 1 pairs"]],
) -> tuple[Float[Tensor, "B T n2 D"], Complex[Tensor, "S3 1 pairs"]]:
    """Append `foreseen` to tokens and RoPE of the present, in parts as large as a pooled frame: POOL**2 of the present,
    then one a frame."""
    tokens = torch.cat((x.flatten(1, 2), future[0].expand(len(x), -1, -1)), dim=1)
    return tokens.unflatten(1, (-1, x.shape[2] // POOL**2)), torch.cat((rope, future[1]))
