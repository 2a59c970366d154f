"""Acting: one robot by every way, batches by the engine, memory, the frame encoder's precisions, a profile."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from lightwam.engine.engine import Engine
from lightwam.evaluation.gpu_figures.profiling import heaviest
from lightwam.evaluation.gpu_figures.setup import Figure, Setup, dtype_name, skipped, without_kernels
from lightwam.policy.benchmark import bench_act, random_engine, random_latents, random_observation, random_policy
from lightwam.policy.policy import Policy
from lightwam.system.timing import seconds, time_interleaved, time_kernels
from lightwam.types import to_pixels

BATCHES = (1, 2, 4, 8)
LIMIT_S = 5.0
"""for the repetitions of each call"""
Pair = Callable[[], tuple[Policy, Policy]]
"""the plain model's policy and the engine's"""


def figures(setup: Setup) -> Mapping[str, Figure]:
    """Return the section's figures by name."""
    pretrained = setup.recipe.latents.pretrained
    policies = lru_cache(1)(partial(_policies, setup))
    return {
        "one robot": partial(_one_robot, setup),
        **{f"batch {size}": partial(_batch, setup, policies, size) for size in BATCHES},
        "batch 1, without kernels": setup.on_gpu_only(partial(_without_kernels, setup)),
        "profile": partial(_profile, setup, policies),
        "frame encoder": partial(_frame_encoder, setup) if pretrained else skipped("it has no weights"),
        "memory": setup.on_gpu_only(partial(_memory, setup, policies.cache_clear)),
    }


def _policies(setup: Setup) -> tuple[Policy, Policy]:
    plain = random_policy(setup.recipe, setup.device)
    engine = random_engine(plain, setup.dtype)
    plain.model.place(setup.device, setup.dtype)
    return plain, engine


def _one_robot(setup: Setup) -> dict[str, Any]:
    """All of `lightwam bench act`: three stages, three ways, parts, GMAC, floors, differences, peak memory."""
    return bench_act(setup.recipe, device=setup.device.type, say=lambda line: None)


def _batch(setup: Setup, policies: Pair, size: int) -> dict[str, Any]:
    """Time canvases to actions of `size` robots: the engine, the engine launched kernel by kernel, the plain model."""
    plain, fast = policies()
    inputs, engine = plain.inputs([random_observation(setup.recipe)] * size), engine_of(fast)
    first_s = seconds(partial(engine.act, *inputs), setup.device)
    calls = {
        "engine": partial(engine.act, *inputs),
        "engine, eager": partial(engine.act_eagerly, *inputs),
        "model": partial(plain.actor.act, *inputs),
    }
    rows = time_interleaved(calls, setup.device, limit_s=LIMIT_S)
    return {"batch_size": size, "dtype": dtype_name(setup.dtype), "first_call_s": first_s, "ways": rows}


def _without_kernels(setup: Setup) -> dict[str, Any]:
    with without_kernels():
        return _batch(setup, lru_cache(1)(partial(_policies, setup)), 1)


def engine_of(policy: Policy) -> Engine:
    """Return the engine of a policy by `random_engine`."""
    return cast(Engine, policy.actor)


def _profile(setup: Setup, policies: Pair) -> dict[str, Any]:
    plain, fast = policies()
    inputs = plain.inputs([random_observation(setup.recipe)])
    call = partial(engine_of(fast).act_eagerly, *inputs)
    return {"batch_size": 1, **heaviest(call, setup.device, setup.out / "profile_act.txt")}


def _memory(setup: Setup, forget: Callable[[], None]) -> dict[str, Any]:
    """Return the peak memory of what serves, an engine with its graphs, after each further size of batch.

    `forget` drops the policies of the other figures.
    """
    forget()
    plain = random_policy(setup.recipe, setup.device)
    engine = engine_of(random_engine(plain, setup.dtype))
    plain.model.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setup.device)
    peaks = {}
    for size in BATCHES:
        inputs = plain.inputs([random_observation(setup.recipe)] * size)
        seconds(partial(engine.act, *inputs), setup.device)
        peaks[str(size)] = torch.cuda.max_memory_reserved(setup.device) / 2**30
    return {"peak_reserved_gib": peaks}


@torch.inference_mode()
def _frame_encoder(setup: Setup) -> dict[str, Any]:
    """Time one frame's encoding in the precisions that it could have, and its error against float32."""
    from lightwam.encoders.wan_vae import WanVaeLatents

    height, width = setup.recipe.codec.canvas
    pixels = to_pixels(torch.randint(0, 256, (1, 1, height, width, 3), dtype=torch.uint8, device=setup.device))
    wan: Any = random_latents(setup.recipe, setup.device)
    half = WanVaeLatents(copy.deepcopy(wan.vae).to(torch.bfloat16))
    exact, ways = None, {}
    for name, latents, tf32 in (("float32", wan, False), ("TF32", wan, True), ("bfloat16", half, True)):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            z = latents.encode(pixels).float()
            exact = z if exact is None else exact
            row = time_kernels({name: partial(latents.encode, pixels)}, setup.device, 1, LIMIT_S)[name]
        ways[name] = row | {"error": relative(z, exact)}
    return {"batch_size": 1, "canvas": [height, width], "ways": ways}


def relative(result: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, divided by that of `exact`."""
    return float((result.double() - exact.double()).norm() / exact.double().norm())
