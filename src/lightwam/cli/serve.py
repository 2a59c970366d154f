"""`lightwam serve`: a trained policy for robots, over openpi's websocket, XPolicyLab's, and HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lightwam.cli.options import parse, split_run, wants_help
from lightwam.errors import ConfigError
from lightwam.serving.settings import Serving

if TYPE_CHECKING:
    from lightwam.policy.policy import Policy
    from lightwam.serving.batcher import Act
    from lightwam.serving.server import Server


@dataclass(frozen=True)
class ServeOptions:
    """Answer robots: openpi's websocket and HTTP on one port, XPolicyLab's websocket on another."""

    serving: Annotated[Serving, tyro.conf.arg(name="")]
    step: int | None = None
    """the checkpoint; the newest by default"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    weights: str | None = None
    """where pretrained encoders lie now, if not where the recipe says"""
    engine: bool = True
    """act by the folded model: the same actions, sooner"""
    int8: bool = False
    """weights in 8 bits; less memory, actions not quite the same"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam serve RUN|OWNER/NAME [--port N] [...]`."""
    path, rest = split_run(arguments, "serve")
    options = parse(ServeOptions(Serving()), rest, f"serve {path}")
    if wants_help(rest):
        return
    serve(path, options)


def serve(run: Path, options: ServeOptions) -> None:
    """Loads the policy and serves it until SIGTERM or Ctrl-C. Doors are checked before a model is loaded.

    `run` is a run directory or, where none lies there, a Hub id.
    """
    from lightwam.serving import access, logs

    settings = options.serving
    if options.step is not None and settings.follow_seconds > 0:
        raise ConfigError("a fixed step cannot follow a training", where="--step, --follow-seconds",
                          got=f"{options.step}, {settings.follow_seconds}", next_step="give one of them")  # fmt: skip
    keys = access.read_keys(settings.api_keys, os.environ.get(access.KEYS_VARIABLE))
    access.check_exposure(settings.host, keys, anyone=settings.allow_anyone)
    access.tls(settings.tls_certificate, settings.tls_key)
    from lightwam.policy import hub, run_directory
    from lightwam.policy.policy import Policy
    from lightwam.serving.sentences import sentence_check
    from lightwam.serving.server import NewWeights, Server
    from lightwam.system.cpu import keep_memory
    from lightwam.wire.robot_schemas import schemas_for

    keep_memory()
    run = hub.find_run(str(run), options.step)

    def load(step: int | None) -> Policy:
        return Policy.load(
            run, step, device=options.device, weights=options.weights, engine=options.engine, int8=options.int8
        )

    def newer(step: int) -> NewWeights | None:
        newest = max(run_directory.steps(run), default=step)
        return None if newest <= step else NewWeights(playable(load(newest)), newest)

    policy = load(options.step)
    model = policy.recipe.model
    schemas = schemas_for(
        settings.robot_schemas, policy.codec.cameras, model.state_dim, model.action_dim, settings.renames
    )
    logs.configure(settings.log)
    check = sentence_check(policy.recipe, policy.prompts.known)
    server = Server(
        playable(policy), policy.step, schemas, metadata(policy, settings), settings, keys, newer, check_sentence=check
    )
    asyncio.run(until_signalled(server))
    if server.drain_timed_out:
        os._exit(1)  # the thread that still thinks would keep the process


async def until_signalled(server: Server) -> None:
    """Serves until SIGTERM, or Ctrl-C; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        server.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    await server.run()


def playable(policy: Policy) -> Act:
    """The policy's chunks as far as training supervised them: a robot plays whatever it is sent."""
    prefix = policy.recipe.model.supervised_prefix
    return lambda observations: policy.act_batch(observations)[:, :prefix]


def metadata(policy: Policy, settings: Serving) -> dict[str, Any]:
    """Return the metadata sent to openpi's clients: what the policy expects and returns, and the server's limits."""
    from lightwam import __version__
    from lightwam.wire.openpi import MESSAGE_BYTES

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
    }
