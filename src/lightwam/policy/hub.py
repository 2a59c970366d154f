"""Runs on the Hugging Face Hub: what acting needs is fetched, and a run is pushed whole, with its card.

On the Hub a run is a model repo with the layout of a run directory, less what acting does not need: one checkpoint,
without the optimiser's state, and of the evaluation its result. Every file is checked against its digest before it
leaves, and when it is loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from lightwam.encoders.weight_files import REPO
from lightwam.errors import CheckpointError, LightwamError
from lightwam.policy import run_directory

WHOLE = ("recipe.json", "processing.json")
"""what every run has"""
MORE = (run_directory.FROZEN, run_directory.PROMPTS, "eval/result.json")
"""what some have"""
CARD = "README.md"
ABOUT = [*WHOLE, CARD, "eval/result.json", "checkpoints/*/meta.json"]
"""small files, fetched first: they say whether it is a run, and which checkpoints it has"""
WEIGHTS = ("model.safetensors", "ema.safetensors")
HUB_ID = re.compile(rf"({REPO.pattern})(?:@(\S+))?")


def find_run(run: Path | str, step: int | None = None) -> Path:
    """The folder of a run: a path as it is; a Hub id, OWNER/NAME or OWNER/NAME@REVISION, fetched for acting at `step`.

    A string is a Hub id when it has that form and nothing lies at it as a path. What was fetched lies in the Hub's
    cache and is not fetched again; it serves offline too. CheckpointError when the repo is missing, private, no run or
    without that step, and when the Hub cannot be reached.
    """
    path = Path(run).expanduser()
    found = HUB_ID.fullmatch(run) if isinstance(run, str) and not path.exists() else None
    return _fetched(found[1], found[2], step) if found else path


def _fetched(repo: str, revision: str | None, step: int | None) -> Path:
    with asking(repo, "no folder of that name lies here, and the Hub does not give one"):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=ABOUT))
        if absent := [name for name in WHOLE if not (folder / name).is_file()]:
            raise CheckpointError("the Hub repo is no run of lightwam", where=repo, got=f"no {', '.join(absent)}",
                                  expected=", ".join(WHOLE) + " and a checkpoint",
                                  next_step="`lightwam push RUN OWNER/NAME` publishes a run")  # fmt: skip
        known = run_directory.steps(folder)
        if not known or (step is not None and step not in known):
            raise CheckpointError("no such checkpoint in the Hub repo", where=repo, got=step,
                                  expected=known or "at least one step")  # fmt: skip
        place = f"checkpoints/step_{known[-1] if step is None else step:08d}"
        weights = [*MORE, *(f"{place}/{name}" for name in WEIGHTS)]
        # the small files again: should the repo have got a new commit meanwhile, all are of that one
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*ABOUT, *weights]))


@contextlib.contextmanager
def asking(repo: str, refusal: str) -> Iterator[None]:
    """Raise what goes wrong with the Hub inside as a CheckpointError that begins with `refusal`."""
    try:
        yield
    except LightwamError:
        raise
    except ImportError as error:
        raise CheckpointError(refusal, where=repo, got=error, expected="huggingface_hub, or a folder of that name",
                              next_step="pip install 'lightwam[hub]'") from error  # fmt: skip
    except Exception as error:  # the HTTP library below, and so its errors, changes with the version
        raise CheckpointError(
            refusal,
            where=repo,
            got=f"{type(error).__name__}: {error}",
            expected="a repo on the Hub that you may use, and the network",
            next_step=_next_step(error),
        ) from error


def _next_step(error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return "name a branch, tag or commit that the repo has"
    if isinstance(error, RepositoryNotFoundError):  # the Hub says the same of missing, private and gated repos
        return "check the name; for a private repo, log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "if a folder was meant, check the path; the Hub is out of reach (network, HF_HUB_OFFLINE), and the repo "
            "was never fetched here whole"
        )
    return "check name, network and rights, and try again: nothing is left half done"
