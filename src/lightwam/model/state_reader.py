"""What the action expert reads of the robot's state itself, beside the tokens; an addition to the published model.

There the state is one token of the context, which picture tokens attend to, and the expert pools those. In a small
model from scratch little of a small change of the state came through, so that the policy did not correct it
(docs/results/robotwin.md). Sines and cosines make it large.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.model.layers import at_least_float32


class StateReader(nn.Module):
    """A linear layer on `state_features`, added to what the expert decodes.

    It begins at zero, so that weights trained without it compute unchanged in the first step.
    """

    def __init__(self, state_dim: int, frequencies: int, width: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.proj = nn.Linear(state_dim * (1 + 2 * frequencies), width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, state: Float[Tensor, "B P"]) -> Float[Tensor, "B W"]:
        return self.proj(state_features(state, self.frequencies).to(self.proj.weight.dtype))


def state_features(state: Float[Tensor, "B P"], frequencies: int) -> Float[Tensor, "B F"]:
    """Return x, sin(pi 2^k x) and cos(pi 2^k x) of a normalised state x, for k from 0; in at least float32."""
    state = at_least_float32(state)
    angles = torch.cat([state * (math.pi * 2**k) for k in range(frequencies)], dim=1)
    return torch.cat((state, angles.sin(), angles.cos()), dim=1)
