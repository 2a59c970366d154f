"""The command `lightwam`: runs a subcommand, and turns a user's errors into a message and an exit code.

The top level is written by hand, so that `lightwam --help` and a misspelt command take milliseconds: only the
subcommands import torch, numpy and tyro.
"""

from __future__ import annotations

import importlib
import io
import os
import shlex
import sys
from collections.abc import Sequence

from lightwam import __version__
from lightwam.errors import ConfigError, LightwamError, did_you_mean

COMMANDS = {
    "init": "look at a dataset of your robot, and write a recipe for it",
    "demo": "collect, train, evaluate and report in one go",
    "collect": "record demonstrations by scripted experts as a LeRobot v3.0 dataset",
    "convert": "convert published demonstrations of LIBERO or RoboTwin to such a dataset",
    "cache": "encode a dataset once: latents and prompts for recipes with pretrained encoders",
    "train": "train a policy on a dataset; the same command resumes it",
    "eval": "run a policy, a run's or a server's, in closed loop on unseen seeds",
    "play": "open a page to watch a policy in its simulator, talk to it and disturb it",
    "drive": "move a robot of LeRobot's, or a simulated one, by a run's policy",
    "serve": "answer robots over openpi's websocket, XPolicyLab's and HTTP",
    "robotwin-policy": "write a policy folder for RoboTwin's evaluation, which asks a server",
    "compare": "compare evaluations, episode by episode",
    "watch": "calibrate a policy's surprise score, and measure how well it detects disturbances",
    "view": "look at a dataset or a run in Rerun: pictures, joints, chunks, imagined futures",
    "report": "write a run's report.html",
    "adopt": "convert a published Light-WAM checkpoint to a run",
    "export": "write a run's weights in the format of the published checkpoints",
    "push": "publish a run on the Hugging Face Hub, with a model card",
    "show": "print a recipe's sizes, parameters, memory and hours",
    "check": "check a dataset, a simulator, an expert or a client",
    "bench": "measure speed",
}
"""name -> summary; each is a module of lightwam.cli with `run(arguments)`, a hyphen an underscore"""

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code.

    0 success; 2 an error of the user's, printed to stderr without a traceback (LIGHTWAM_DEBUG=1 shows it); 130 Ctrl-C.
    After a Ctrl-C the same command resumes from what it had saved.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _escape_unprintable()
    try:
        return _dispatch(arguments)
    except LightwamError as error:
        return _report(error)
    except KeyboardInterrupt:
        print(f"\nlightwam: stopped. To resume: {shlex.join(['lightwam', *arguments])}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of stdout (`| head`) left early; without this, Python complains again while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from lightwam.system.files import machine_error

        if (known := machine_error(error)) is None:
            raise
        return _report(known)


def _report(error: LightwamError) -> int:
    if os.environ.get("LIGHTWAM_DEBUG") == "1":
        raise error
    print(f"lightwam: {error}", file=sys.stderr)
    return USER_ERROR


def _escape_unprintable() -> None:
    """Print characters that the terminal's encoding lacks as escapes: a Chinese sentence must not stop a training."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test, or a calling program, may have replaced it
            stream.reconfigure(errors="backslashreplace")


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"lightwam {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        step = f"{did_you_mean(name, COMMANDS)}; lightwam --help"
        raise ConfigError("unknown command", got=repr(name), next_step=step)
    importlib.import_module(f"lightwam.cli.{name.replace('-', '_')}").run(rest)
    return 0


def usage() -> str:
    """Return the text of `lightwam --help`."""
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{summary}" for name, summary in COMMANDS.items())
    return f"""lightwam {__version__}: lightweight World-Action Models

usage: lightwam COMMAND [...]

{commands}

lightwam COMMAND --help lists options. First: lightwam demo point (a toy), lightwam demo (real tasks)."""
