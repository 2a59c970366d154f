"""Runs on the Hugging Face Hub: fetch what acting needs.

On the Hub a run is a model repo with the layout of a run directory, less what acting does not need: one checkpoint
without the optimiser's state, and only the result of the evaluation. `lightwam.report.publish` pushes it. Every file is
checked against its digest before it is pushed, and when it is loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from lightwam.encoders.weight_files import REPO
from lightwam.errors import CheckpointError, LightwamError
from lightwam.policy import run_directory

REQUIRED_FILES = ("recipe.json", "processing.json")
RESULTS = ("eval/result.json", "eval/open_loop.json")
OPTIONAL_FILES = (run_directory.FACTS, run_directory.FROZEN, run_directory.PROMPTS, *RESULTS)
CARD = "README.md"
INDEX_FILES = [*REQUIRED_FILES, run_directory.FACTS, CARD, *RESULTS, "checkpoints/*/meta.json"]
"""small files, fetched first: they show whether the repo is a run, and which checkpoints it has"""
WEIGHTS = ("model.safetensors", "ema.safetensors")
HUB_ID = re.compile(rf"({REPO.pattern})(?:@(\S+))?")


def find_run(run: Path | str, step: int | None = None) -> Path:
    """Return the folder of a run; a Hub id, OWNER/NAME or OWNER/NAME@REVISION, is fetched for acting at `step`.

    A string is a Hub id when it has that form and no such path exists. Fetched files are in the Hub's cache, and are
    used offline too. CheckpointError when the repo is missing, private, not a run or without that step, or the Hub
    cannot be reached.
    """
    path = Path(run).expanduser()
    hub_id = HUB_ID.fullmatch(run) if isinstance(run, str) and not path.exists() else None
    return _fetch(hub_id[1], hub_id[2], step) if hub_id else path


def _fetch(repo: str, revision: str | None, step: int | None) -> Path:
    with hub_errors(repo, "there is no folder of that name, and the Hub does not provide one"):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=INDEX_FILES))
        if absent := [name for name in REQUIRED_FILES if not (folder / name).is_file()]:
            what, got = "the Hub repo must be a run of lightwam", f"no {', '.join(absent)}"
            raise CheckpointError(what, where=repo, got=got, next_step="`lightwam push RUN OWNER/NAME` publishes a run")
        checkpoint = run_directory.checkpoint_dir(folder, step, where=f"Hub repo {repo}").relative_to(folder)
        weights = [*OPTIONAL_FILES, *(f"{checkpoint}/{name}" for name in WEIGHTS)]
        # the small files again: if the repo got a new commit meanwhile, all files are of that commit
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*INDEX_FILES, *weights]))


@contextlib.contextmanager
def hub_errors(repo: str, what: str) -> Iterator[None]:
    """Turn an error of the Hub's client into a CheckpointError that begins with `what`."""
    try:
        yield
    except LightwamError:
        raise
    except ImportError as error:
        step = "pip install 'lightwam[hub]'"
        raise CheckpointError(what, where=repo, got=error, expected="huggingface_hub", next_step=step) from error
    except Exception as error:  # the HTTP library below, and so its errors, changes with the version
        got, step = f"{type(error).__name__}: {error}", _next_step(error)
        raise CheckpointError(what, where=repo, got=got, next_step=step) from error


def _next_step(error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return "name a branch, tag or commit that the repo has"
    if isinstance(error, RepositoryNotFoundError):  # the Hub says the same of missing, private and gated repos
        return "check the name; for a private repo, log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "if a folder was meant, check the path; the Hub cannot be reached (network, HF_HUB_OFFLINE), and the repo "
            "is not completely in the local cache"
        )
    return "check name, network and rights, and try again: nothing is left half done"
