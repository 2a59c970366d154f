"""The modulation of a folded block: in its weights where all tokens have one time, else applied to the tokens.

With foresight the present's tokens have time 0 and foreseen ones the time of noise level 1. Folding both would make two
sets of most weights. So norms and gates apply the vectors instead, and a layer has one product for all tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lightwam.engine.folding import Placement
from lightwam.model.layers import EPS, layer_norm


class ToFold(NamedTuple):
    """What goes into weights: scale and shift into the layer behind the norm, the gate into that before the sum."""

    scale: Float[Tensor, " D"] | None
    shift: Float[Tensor, " D"] | None
    gate: Float[Tensor, " D"] | None


class Tables(NamedTuple):
    """`Modulation` for kernels: a row for tokens of time 0, then one for each sample's others; None where folded."""

    shift: Float[Tensor, "rows D"] | None = None
    scale: Float[Tensor, "rows D"] | None = None
    gate: Float[Tensor, "rows D"] | None = None


FOLDED = Tables()
"""of a modulation that is in the weights, or of a norm that has none"""


class Modulation(NamedTuple):
    """What is applied to the tokens of each of two times; empty where it is in the weights."""

    norms: tuple[tuple[Float[Tensor, " D"], Float[Tensor, " D"]], ...]
    """weight and bias"""
    gates: tuple[Float[Tensor, " D"], ...]

    def norm(self, x: Float[Tensor, "B S D"], present: int) -> Float[Tensor, "B S D"]:
        """Return the modulated norm of tokens, of which the first `present` have time 0."""
        if not self.norms:
            return layer_norm(x)
        parts = zip(x.split((present, x.shape[1] - present), dim=1), self.norms, strict=True)
        return torch.cat([F.layer_norm(part, part.shape[-1:], *norm, EPS) for part, norm in parts], dim=1)

    def add(self, x: Float[Tensor, "B S D"], update: Float[Tensor, "B S D"], present: int) -> Float[Tensor, "B S D"]:
        """Return x + gate * update; overwrites `update`."""
        if self.gates:
            for part, gate in zip((update[:, :present], update[:, present:]), self.gates, strict=True):
                part.mul_(gate)
        return x + update

    def tables(self, size: int) -> Tables:
        """Return the vectors for a batch of `size`."""
        if not self.norms:
            return FOLDED
        (scale1, shift1), (scale2, shift2) = self.norms
        pairs = (shift1, shift2), (scale1, scale2), self.gates
        return Tables(*(torch.cat((one[None], two.expand(size, -1))) for one, two in pairs))


def split_modulation(vectors: Float[Tensor, "R 3 D"], placement: Placement) -> tuple[ToFold, Modulation]:
    """Return what to fold and what to apply of a shift, a scale and a gate at each of R times."""
    shift, scale, gate = vectors.unbind(1)
    if len(vectors) == 1:
        return ToFold(1 + scale[0], shift[0], gate[0]), Modulation((), ())
    norms = tuple((placement.put(1 + one), placement.put(two)) for one, two in zip(scale, shift, strict=True))
    return ToFold(None, None, None), Modulation(norms, tuple(placement.put(row) for row in gate))
