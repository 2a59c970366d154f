"""Serve a run's policy until the process is asked to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from lightwam.engine.graphs import batch_sizes
from lightwam.errors import ConfigError
from lightwam.policy import hub, run_directory
from lightwam.policy.driving import greeting
from lightwam.policy.policy import Policy
from lightwam.serving import access, logs
from lightwam.serving.batcher import Act
from lightwam.serving.logs import log_event
from lightwam.serving.sentences import sentence_check
from lightwam.serving.server import NewWeights, Server
from lightwam.serving.settings import Serving
from lightwam.wire.openpi import MESSAGE_BYTES
from lightwam.wire.robot_schemas import schemas_for


def serve(
    run: str,
    settings: Serving,
    step: int | None = None,
    *,
    device: str = "auto",
    weights: str | None = None,
    engine: bool = True,
    int8: bool = False,
) -> bool:
    """Load the policy of a run directory or Hub id and serve it until SIGTERM or Ctrl-C.

    The settings of the endpoints are checked before the model is loaded. The other arguments are those of
    `Policy.load`. Returns False when the server stopped while the policy was still computing.
    """
    if step is not None and settings.follow_seconds > 0:
        got = f"{step}, {settings.follow_seconds}"
        raise ConfigError("a fixed step cannot follow a training", where="--step, --follow-seconds", got=got)
    keys = accepted_keys(settings)
    found = hub.find_run(run, step)
    load = partial(Policy.load, found, device=device, weights=weights, engine=engine, int8=int8)
    return run_server(make_server(found, load, settings, keys, step))


def make_server(
    run: Path, load: Callable[[int | None], Policy], settings: Serving, keys: access.Keys, step: int | None = None
) -> Server:
    """Load a run's policy by `load(step)` and return its server, not listening yet.

    Only the server's batcher keeps the policy, so that its memory is free once a newer one has taken over.
    """

    def newer(step: int) -> NewWeights | None:
        chosen = run_directory.default_step(run)
        if chosen is None or chosen <= step:
            return None
        policy = load(chosen)
        warm(policy, settings.max_batch)
        return NewWeights(playable(policy), chosen)

    policy = load(step)
    model, cameras = policy.recipe.model, policy.codec.cameras
    schemas = schemas_for(settings.robot_schemas, cameras, model.state_dim, model.action_dim, settings.renames)
    logs.configure(settings.log)
    check = sentence_check(policy.recipe, policy.prompts.known)
    about = metadata(policy, settings)
    warm(policy, settings.max_batch)
    act, replan = playable(policy), policy.recipe.eval.replan
    return Server(act, policy.step, schemas, about, settings, keys, newer, check_sentence=check, replan=replan)


def warm(policy: Policy, max_batch: int) -> None:
    """Prepare a GPU for batches of up to `max_batch`, before the first robot asks, and log how long that took."""
    if policy.device.type != "cpu":
        sizes, began = batch_sizes(max_batch), time.perf_counter()
        policy.warm(sizes)
        seconds = f"{time.perf_counter() - began:.1f}"
        log_event("ready for batches", step=policy.step, sizes=sizes, device=policy.device, seconds=seconds)


def accepted_keys(settings: Serving) -> access.Keys:
    """Return the API keys of the settings and of the environment; ConfigError if a server must not start like that."""
    keys = access.read_keys(settings.api_keys, os.environ.get(access.KEYS_VARIABLE))
    access.check_exposure(settings.host, keys, anyone=settings.allow_anyone)
    access.tls(settings.tls_certificate, settings.tls_key)
    return keys


def run_server(server: Server) -> bool:
    """Serve until SIGTERM or Ctrl-C; returns False when the policy was still computing at the end."""
    asyncio.run(until_signalled(server.stopping, server.run()))
    return not server.drain_timed_out


async def until_signalled(stopping: asyncio.Event, serving: Coroutine[Any, Any, None]) -> None:
    """Await `serving`, and set `stopping` on SIGTERM or Ctrl-C; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    await serving


def playable(policy: Policy) -> Act:
    """Return a function to the policy's chunks as far as training supervised them: a robot plays what it is sent."""
    prefix = policy.recipe.model.supervised_prefix
    return lambda observations: policy.act_batch(observations)[:, :prefix]


def metadata(policy: Policy, settings: Serving) -> dict[str, Any]:
    """Return the metadata sent to openpi's clients: what the policy expects and returns, and the server's limits."""
    from lightwam import __version__

    recipe = policy.recipe
    return {
        "server": f"lightwam {__version__}",
        "recipe": recipe.name,
        "step": policy.step,
        "computes": policy.computes,
        "cameras": list(policy.codec.cameras),
        "state_dim": recipe.model.state_dim,
        "action_dim": recipe.model.action_dim,
        "horizon": recipe.model.supervised_prefix,
        "replan": recipe.eval.replan,
        MESSAGE_BYTES: settings.limits.message_bytes,
        **greeting(policy),
    }
