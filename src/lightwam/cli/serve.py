"""`lightwam serve`: a trained policy for robots, over the websockets of openpi, XPolicyLab and vla-eval, and HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from lightwam.cli.options import Flat, PolicyOptions, print_step, run_command
from lightwam.serving.settings import Serving


@dataclass(frozen=True, kw_only=True)
class ServeOptions(PolicyOptions):
    """Answer robots: websockets of openpi and vla-eval and HTTP on one port, XPolicyLab's websocket on another."""

    serving: Annotated[Serving, Flat] = field(default_factory=Serving)
    engine: bool = True
    """act by the folded model: the same actions, faster"""
    int8: bool = False
    """weights in 8 bits: less memory, slightly different actions"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam serve RUN|OWNER/NAME [--port N] [...]`."""
    (run,), options = run_command(ServeOptions, arguments, "serve")
    from lightwam.serving.serve import serve
    from lightwam.system.cpu import keep_memory

    keep_memory()
    print_step(run, options.step)
    stopped = serve(
        run,
        options.serving,
        options.step,
        device=options.device,
        weights=options.weights,
        engine=options.engine,
        int8=options.int8,
    )
    if not stopped:
        os._exit(1)  # a thread that still computes would keep the process
