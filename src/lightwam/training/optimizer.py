"""Optimizers: AdamW, plus Muon for the backbone's matrices; and the schedules of their rate and of the average."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightwam.config.schema import TrainConfig
from lightwam.training.distributed import sharded_like

MUON_PARTS = ("dit.blocks.", "dit.adapters.")
"""Muon trains matrices between hidden states; AdamW trains inputs, outputs and the action expert"""


class Optimizer:
    """All optimisers of a run as one; every group follows one schedule, scaled to the group's own peak rate.

    Weights in bfloat16 have float32 masters, which are optimised in their place: most single updates are smaller than
    the spacing of bfloat16 and would be lost. `masters` has these, and the weights themselves if they are float32.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], settings: TrainConfig) -> None:
        self.masters = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for name, p in trained.items()
        }
        self._copies = [(p, self.masters[name]) for name, p in trained.items() if p is not self.masters[name]]
        matrices = {name: p for name, p in self.masters.items() if name.startswith(MUON_PARTS) and p.ndim == 2}
        muon = matrices if settings.muon_learning_rate else {}
        rest = {name: p for name, p in self.masters.items() if name not in muon}
        groups = weight_groups(rest, settings.weight_decay)
        adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
        self._parts: list[torch.optim.Optimizer] = [adamw]
        if muon:
            self._parts.append(Muon(muon.values(), settings.muon_learning_rate, settings.weight_decay))
        for group in self._groups():
            group["peak"] = group["lr"]

    @torch.no_grad()
    def collect(self) -> None:
        """Add the weights' gradients to their masters', in float32, and drop them."""
        first: tuple[list[Tensor], list[Tensor]] = ([], [])
        later: tuple[list[Tensor], list[Tensor]] = ([], [])
        for weight, master in self._copies:
            if weight.grad is None:
                continue
            own, gradients = first if master.grad is None else later
            if master.grad is None:
                master.grad = torch.empty_like(master)
            own.append(master.grad)
            gradients.append(weight.grad)
            weight.grad = None
        if first[0]:
            torch._foreach_copy_(*first)
        if later[0]:
            torch._foreach_add_(*later)

    def clip(self, max_norm: float) -> Float[Tensor, ""]:
        """Collect the gradients and scale them down to a joint norm of at most `max_norm`; return the norm before."""
        self.collect()
        return torch.nn.utils.clip_grad_norm_(self.masters.values(), max_norm)

    def step(self, scale: float) -> None:
        """Update the weights at `scale` times every group's peak rate, then drop the gradients."""
        for group in self._groups():
            group["lr"] = group["peak"] * scale
        for part in self._parts:
            part.step()
            part.zero_grad()
        if self._copies:
            with torch.no_grad():  # rounded
                torch._foreach_copy_([weight for weight, _ in self._copies], [master for _, master in self._copies])

    def state_dict(self) -> list[dict[str, Any]]:
        """Return one entry for each optimiser."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Load what `state_dict` returned with the same settings."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
            for p, table in part.state.items():
                for key, value in table.items():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        table[key] = sharded_like(value, p.data)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): momentum, each matrix replaced by the nearest orthogonal one.

    Nesterov momentum; updates are scaled to the size of AdamW's as in Moonlight (arXiv 2502.16982), so that learning
    rates and weight decay are comparable. Matrices of one shape are processed together, in their own precision:
    torch.optim.Muon processes them one by one in bfloat16, which took 15 times as long for the demo's 46 matrices on a
    CPU without bfloat16 units.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
                    if not self.state[p]:
                        self.state[p]["average"] = torch.zeros_like(p)
            for shape, parameters in by_shape.items():
                gradients = [p.grad for p in parameters if p.grad is not None]
                averages = [self.state[p]["average"] for p in parameters]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                directions = torch._foreach_lerp(gradients, averages, group["momentum"])
                updates = orthogonal(torch.stack(list(directions))) * (0.2 * max(shape) ** 0.5)
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"])


def orthogonal(matrices: Float[Tensor, "k n m"], steps: int = 5) -> Float[Tensor, "k n m"]:
    """Approximate U V' of every matrix U S V' by Newton-Schulz iterations: singular values end within 0.7 .. 1.2.

    The coefficients of a x + b x^3 + c x^5 are Muon's, chosen to raise small singular values fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    for _ in range(steps):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def weight_groups(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters: weight decay for matrices, none for biases, norms, modulations and learned queries."""
    matrices = [p for name, p in parameters.items() if p.ndim >= 2 and name.endswith("weight")]
    ids = {id(p) for p in matrices}
    others = [p for p in parameters.values() if id(p) not in ids]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(step: int, settings: TrainConfig) -> float:
    """Return a step's learning rate: linear warm-up, then half a cosine to `final_learning_rate` at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    low = settings.final_learning_rate
    return low + (settings.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def ema_decay(step: int, decay: float) -> float:
    """Return a step's decay of the average: lower at first, to forget the random initial weights soon."""
    return min(decay, (1 + step) / (10 + step))
