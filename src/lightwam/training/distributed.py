"""Training in one process or in many, as torchrun starts them. Nothing here depends on the model.

Checkpoints hold complete tensors, gathered from all processes: a run may resume with another number of processes, or
with another way of sharing the work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from lightwam.system.devices import resolve_device
from lightwam.types import SINGLE_PROCESS, Rank

TIMEOUT = timedelta(days=7)
"""of collective operations: rank 0 may spend hours building a cache while the others wait"""
Parallel = Literal["ddp", "fsdp"]
"""ddp: every process holds everything; fsdp: each holds a part of weights, gradients and optimiser (FSDP2)"""


@dataclass(frozen=True)
class World:
    """The processes of this training, as one of them sees them."""

    device: torch.device
    process: Rank = SINGLE_PROCESS

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.process.size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.process.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process go first; the others then read what it wrote."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: bool) -> bool:
        """Return the main process's value; a shared file system may show files later to the others."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def mean(self, value: Tensor) -> Tensor:
        """Average over processes, in place; the result is the same in each."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value


@contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started (a single one without torchrun): NCCL on GPUs, gloo on CPUs.

    `device` is "auto" (a GPU if there is one), "cpu" or "cuda". Raises ConfigError when this machine does not have it.
    """
    local, size = resolve_device(device), int(os.environ.get("WORLD_SIZE", "1"))
    if local.type == "cuda":
        torch.cuda.set_device(local)
    if size == 1:
        yield World(local)
        return
    if local.type == "cuda":
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=local)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    yield World(local, Rank(dist.get_rank(), size))
    # Not after an exception: the others may wait in a collective forever, and the error has to be printed.
    dist.destroy_process_group()


def parallelise(
    module: nn.Module,
    world: World,
    parallel: Parallel,
    compute_dtype: torch.dtype,
    *,
    all_used: bool = True,
    parts: Iterable[nn.Module] = (),
) -> nn.Module:
    """Wrap `module` for training by all processes of `world`.

    ddp adds up gradients in the weights' dtype; `all_used` says that every step uses every trained weight. fsdp keeps
    float32 shards and gathers them in `compute_dtype`: those of each of `parts` while its method `run` is called, so
    that the next one's are on their way meanwhile, and all others' for the whole step.
    """
    if world.size == 1:
        return module
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(
            module, find_unused_parameters=not all_used, gradient_as_bucket_view=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(part, "run")
    return cast(nn.Module, fully_shard(module, mesh=mesh, mp_policy=policy))


def sync_on_last(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Synchronise gradients on the last micro batch only; enter it for each backward pass."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else cast(AbstractContextManager[None], module.no_sync())
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


def gather(tree: Any, keep: bool = True) -> Any:
    """Gather the tensors in nested containers from their shards onto the CPU; all processes have to call it.

    Without `keep` this process takes part in the gathering and gets empty tensors.
    """

    def gathered(value: Tensor) -> Tensor:
        full = whole(value)
        return full.detach().cpu() if keep else torch.empty(0)

    return tree_map_only(Tensor, gathered, tree)


def whole(value: Tensor) -> Tensor:
    """Return a tensor gathered from its shards, on its device; all processes have to call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded_like(value: Tensor, target: Tensor) -> Tensor:
    """Shard a complete tensor as `target` is."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
