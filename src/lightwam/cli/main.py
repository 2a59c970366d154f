"""The command `lightwam`: finds the subcommand, and turns what goes wrong in it into a message and an exit code.

The top level is written by hand, so that `lightwam --help` and a typing error cost milliseconds: torch, numpy and tyro
are imported by the subcommands alone.
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
    "demo": "collect, train, evaluate and report in one go",
    "collect": "record demonstrations by scripted experts as a LeRobot v3.0 dataset",
    "convert": "turn published demonstrations of LIBERO into such a dataset",
    "cache": "encode a dataset once: latents and prompts for recipes with pretrained encoders",
    "train": "train a policy on a dataset; the same command again goes on where it stopped",
    "eval": "run a policy in closed loop on seeds it never saw, a run's or a server's",
    "serve": "answer robots over openpi's websocket, XPolicyLab's and HTTP",
    "compare": "compare two evaluations, episode by episode",
    "watch": "calibrate how a policy is surprised, and measure what that tells",
    "report": "write a run's report.html",
    "adopt": "make a run of a published Light-WAM checkpoint",
    "export": "write a run's weights as a published Light-WAM checkpoint",
    "push": "publish a run on the Hugging Face Hub, with a model card",
    "show": "print a recipe's sizes, parameters and memory",
    "check": "check a dataset or a simulator",
    "bench": "measure speed",
}
"""name -> summary; each is a module of lightwam.cli with `run(arguments)`"""

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code.

    0 success; 2 an error of the user's making, told on stderr without a traceback (LIGHTWAM_DEBUG=1 shows it); 130
    Ctrl-C. Every command may be given again after a Ctrl-C: it goes on from what it had saved.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _escape_unprintable()
    try:
        return _dispatch(arguments)
    except LightwamError as error:
        return _report(error)
    except KeyboardInterrupt:
        print(f"\nlightwam: stopped. To go on: {shlex.join(['lightwam', *arguments])}", file=sys.stderr)
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
        raise ConfigError(
            "unknown command", got=repr(name), next_step=f"{did_you_mean(name, COMMANDS)}; lightwam --help"
        )
    importlib.import_module(f"lightwam.cli.{name}").run(rest)
    return 0


def usage() -> str:
    """What `lightwam --help` prints."""
    return "\n".join(
        [
            f"lightwam {__version__}: lightweight World-Action Models",
            "",
            "usage: lightwam COMMAND [...]",
            "",
            *(f"  {name:9}{summary}" for name, summary in COMMANDS.items()),
            "",
            "lightwam COMMAND --help tells more. First steps: lightwam demo point (a toy), lightwam demo (real tasks).",
        ]
    )
