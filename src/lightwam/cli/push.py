"""`lightwam push`: a run on the Hugging Face Hub, with a model card that holds what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import RUN, print_step, run_command


@dataclass(frozen=True)
class PushOptions:
    """Publish one checkpoint of a run, its evaluation's result and a model card, with the token of `hf auth login`."""

    step: int | None = None
    """the checkpoint; by default the best on held-out episodes, or the newest if none are held out"""
    private: bool = False
    """create a private repo"""
    license: str = "apache-2.0"
    """license of the weights, as the Hub spells it; lightwam's own by default"""
    dataset: str = ""
    """the Hub id of the dataset it was trained on, if that is published"""
    to: Path | None = None
    """write into this new folder what would be pushed, and push nothing"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam push RUN OWNER/NAME [--private] [--to FOLDER]`."""
    names = RUN | {"OWNER/NAME": "the name of a repo"}
    (run, repo), options = run_command(PushOptions, arguments, "push", names)
    from lightwam.report import publish

    print_step(run, options.step)
    about = {"license": options.license, "dataset": options.dataset}
    if options.to is not None:
        print(publish.stage(Path(run), options.to, repo, options.step, **about))
    else:
        print(publish.push(run, repo, options.step, private=options.private, **about))
