"""One process or many: what torchrun started, and how its processes share a training step.

Nothing here knows the model. Whatever goes to disk is whole (gathered from its shards), so a run may go on with
another number of processes, or another way of sharing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightwam.system.devices import device_called
from lightwam.types import Rank

PATIENCE = timedelta(days=7)
"""for one another: one process may decode or encode for hours while the others wait"""
Parallel = Literal["ddp", "fsdp"]
"""ddp: every process holds everything; fsdp: each holds a part of weights, gradients and optimiser (FSDP2)"""


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def share(self) -> Rank:
        """Which of them it is."""
        return Rank(self.rank, self.size)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The others wait until the leader is through, then read what it wrote."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, value: bool) -> bool:
        """What the leader found, for all: files may show later to the others."""
        said = [value]
        if self.size > 1:
            dist.broadcast_object_list(said, src=0)
        return said[0]

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes, the same in each."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """The processes that torchrun started (one, without it), joined while inside: NCCL on GPUs, gloo on CPUs.

    `device` is "auto" (a GPU where there is one), "cpu" or "cuda". ConfigError when there is no such device here.
    """
    local, size = device_called(device), int(os.environ.get("WORLD_SIZE", "1"))
    if local.type == "cuda":
        torch.cuda.set_device(local)
    if size == 1:
        yield World(local)
        return
    dist.init_process_group("nccl" if local.type == "cuda" else "gloo", timeout=PATIENCE)
    yield World(local, dist.get_rank(), size)
    # Not after an exception: the others may be inside an exchange that will never end, and the message has to get out.
    dist.destroy_process_group()


def share(
    module: nn.Module, world: World, parallel: Parallel, compute_dtype: torch.dtype, *, all_used: bool = True
) -> nn.Module:
    """`module` as the processes train it together.

    ddp adds up gradients in the weights' dtype; `all_used` says that every step uses every trained weight. fsdp keeps
    float32 shards and gathers them in `compute_dtype`.
    """
    if world.size == 1:
        return module
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=not all_used)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    return cast(
        nn.Module, fully_shard(module, mesh=init_device_mesh(world.device.type, (world.size,)), mp_policy=policy)
    )


def adding_up(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """For one backward pass of several: gradients are exchanged by the last alone."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else cast(AbstractContextManager[None], module.no_sync())
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


def whole(tree: Any, keep: bool = True) -> Any:
    """Nested tables with every tensor gathered from its shards, on the CPU; all processes have to call it.

    Without `keep` this process takes part in the gathering and gets empty tensors.
    """

    def gathered(value: Tensor) -> Tensor:
        full = value.full_tensor() if isinstance(value, DTensor) else value
        return full.detach().cpu() if keep else torch.empty(0)

    return _mapped(tree, gathered)


def sharded_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, cut as `target` is."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


def _mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(value, change) for value in tree)
    return tree
