"""`lightwam push`: a run on the Hugging Face Hub, with a model card that holds what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightwam.cli.options import parse, split_run, wants_help
from lightwam.errors import ConfigError


@dataclass(frozen=True)
class PushOptions:
    """Publish one checkpoint of a run, its evaluation's result and a model card; the token is of `hf auth login`."""

    step: int | None = None
    """of which checkpoint; the newest by default"""
    private: bool = False
    """only you, and whom you let in, can see it"""
    license: str = "apache-2.0"
    """of the weights, as the Hub spells it; lightwam's own by default"""
    dataset: str = ""
    """the Hub id of what it was trained on, where that is published"""
    to: Path | None = None
    """write what would be pushed into this new folder, and push nothing"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam push RUN OWNER/NAME [--private] [--to FOLDER]`."""
    directory, rest = split_run(arguments, "push")
    if wants_help(rest):
        parse(PushOptions(), rest, "push RUN OWNER/NAME")
    if not rest or rest[0].startswith("-"):
        raise ConfigError("lightwam push needs the name of a repo", got=" ".join(rest) or "none", expected="OWNER/NAME",
                          next_step=f"lightwam push {directory} OWNER/NAME")  # fmt: skip
    repo, *rest = rest
    options = parse(PushOptions(), rest, f"push {directory} {repo}")
    from lightwam.report import publish

    about = {"license": options.license, "dataset": options.dataset}
    if options.to is not None:
        print(publish.stage(directory, options.to, repo, options.step, **about))
    else:
        print(publish.push(directory, repo, options.step, private=options.private, **about))
