"""Play with a run's policy: load it, and serve the page until the process is asked to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from lightwam.evaluation.recorded import recorded_episodes
from lightwam.play.board import Board
from lightwam.play.recorded import RecordedSession
from lightwam.play.server import Playable, PlayServer
from lightwam.play.session import Session
from lightwam.play.settings import PlaySettings
from lightwam.policy import hub
from lightwam.policy.policy import Policy
from lightwam.serving import access, logs
from lightwam.serving.sentences import sentence_check
from lightwam.serving.serve import until_signalled
from lightwam.system.workers import require_main_guard

MOST_STEPS = 20_000
"""control steps of the recorded episodes that can be chosen"""


def play(
    run: Path | str,
    settings: PlaySettings | None = None,
    step: int | None = None,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    weights: str | None = None,
    recorded: bool = False,
    dataset: Path | str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page of a run directory or Hub id until SIGTERM or Ctrl-C; `say` gets its address.

    The policy acts in the run's simulator. Without one, with `recorded` or with a `dataset`, recorded episodes are
    shown: those of `dataset`, else those that the run held out, else those it was trained on. The other arguments are
    those of `Policy.load`. Raises its errors and those of `recorded_episodes`; ConfigError for settings that would let
    other machines in without a key, or in a script without a main guard.
    """
    settings = settings or PlaySettings()
    require_main_guard()
    keys = access.read_keys(settings.api_keys, os.environ.get(access.KEYS_VARIABLE))
    access.check_exposure(settings.host, keys, anyone=settings.allow_anyone)
    access.tls(settings.tls_certificate, settings.tls_key)
    found = hub.find_run(run, step)
    load = partial(Policy.load, found, step, device=device, weights=weights)
    policy, board = load(), Board()
    logs.configure("text")
    check = sentence_check(policy.recipe, policy.prompts.known)
    engine = partial(load, engine=True)
    session: Playable
    if recorded or dataset is not None or policy.recipe.sim is None:
        episodes = recorded_episodes(policy, dataset, MOST_STEPS, say)
        session = RecordedSession(policy, episodes, engine, check, board, imagine_steps=settings.imagine_steps)
    else:
        steps, height = settings.imagine_steps, settings.view_height
        session = Session(policy, engine, check, board, imagine_steps=steps, view_height=height)
    scheme = "https" if settings.tls_certificate else "http"
    name = f"[{settings.host}]" if ":" in settings.host else settings.host

    def ready(server: PlayServer) -> None:
        say(f"open {scheme}://{name}:{server.port}/ (Ctrl-C ends)")

    async def serve() -> None:
        server = PlayServer(session, board, settings, keys, found)
        await until_signalled(server.stopping, server.run(ready))

    asyncio.run(serve())
