"""Predicted latents to pictures, with the present's own detail where nothing moves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightwam.types import LatentCodec

CHANGE = 12 / 127.5
"""mean change of a pixel's colours, 12 of 255, at which 1/e of the present's detail is kept; of 7, 10, 14 and 20 the
demo's pictures had the smallest errors between 10 and 14"""


def decode_future(
    latents: LatentCodec, present: Float[Tensor, "B 3 1 height width"], clip: Float[Tensor, "B C T h2 w2"]
) -> Float[Tensor, "B 3 F height width"]:
    """Decode the averaged latents of a clip whose first frame, `present`, is known; pixels in [-1, 1].

    The latents lack detail that the present picture has. Where the clip decodes to the same as one in which nothing
    moves, that detail is added; where it does not, the clip stays as it is decoded. The first frame is the present.
    """
    later = latents.decode_pooled(clip)[:, :, 1:]
    if not later.shape[2]:
        return present
    still = torch.cat((clip[:, :, :1], latents.motionless(clip[:, :, :1])), dim=2)
    still_pixels = latents.decode_pooled(still)[:, :, 1:].repeat(1, 1, clip.shape[2] - 1, 1, 1)
    change = F.avg_pool2d((later - still_pixels).abs().mean(dim=1), 3, 1, 1, count_include_pad=False)
    kept = torch.exp(-(change / CHANGE).square())[:, None]
    return torch.cat((present, later + kept * (present - still_pixels)), dim=2)
