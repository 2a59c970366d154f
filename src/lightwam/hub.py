"""Runs on the Hugging Face Hub: what acting needs is fetched, and a run is pushed whole, with its card.

On the Hub a run is a model repo with the layout of a run directory, less what acting does not need: one checkpoint,
without the optimiser's state, and of the evaluation its result. Every file is checked against its digest before it
leaves, and when it is loaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightwam import checkpoint
from lightwam.data.files import writing
from lightwam.errors import CheckpointError, ConfigError, LightwamError
from lightwam.model_card import LICENSE as LICENSE
from lightwam.model_card import model_card
from lightwam.weights.files import REPO

WHOLE = ("recipe.json", "processing.json")
"""what every run has"""
MORE = (checkpoint.FROZEN, checkpoint.PROMPTS, "eval/result.json")
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


def push(
    run: Path,
    repo: str,
    step: int | None = None,
    *,
    private: bool = False,
    token: str | None = None,
    license: str = LICENSE,
    dataset: str = "",
) -> str:
    """Upload the run's checkpoint of `step` (the newest by default) as `repo`, OWNER/NAME; returns its address.

    The repo is made where there is none, `private` or public; one that is public is refused when `private` is asked
    for. Its run is replaced in one commit, all or nothing; other files in it stay. `token` is the Hub's, by default
    the one that `hf auth login` or HF_TOKEN gives. `license` and `dataset` (a Hub id) stand on the card.
    CheckpointError when the run is damaged, or the Hub refuses or cannot be reached; ConfigError for what is not a repo
    id.
    """
    if not REPO.fullmatch(repo):
        raise ConfigError("not the id of a Hub repo", where="repo", got=repr(repo), expected="OWNER/NAME")
    with _temporary_folder() as place:
        folder = stage(run, place / "run", repo, step, license=license, dataset=dataset)
        with _asking(repo, "the run cannot be pushed to the Hub"):
            from huggingface_hub import HfApi

            api = HfApi(token=token)
            url = api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.repo_info(repo).private:
                raise CheckpointError("the repo is there already, and public", where=repo, got="private=True",
                                      expected="a private repo, or a new one",
                                      next_step="make it private in its settings, or choose another name")  # fmt: skip
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"lightwam run, step {checkpoint.steps(folder)[-1]}",
                delete_patterns=[*WHOLE, *MORE, "checkpoints/*"],
            )
    return str(url)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    place = Path(tempfile.gettempdir())
    with writing(place, goes_on="push again; TMPDIR may name another disk"):
        folder = tempfile.mkdtemp(prefix="lightwam-push-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stage(
    run: Path, to: Path, repo: str, step: int | None = None, *, license: str = LICENSE, dataset: str = ""
) -> Path:
    """Write what `push` uploads into the new folder `to`, there whole or not at all; returns it.

    CheckpointError when `run` is damaged, `to` holds something, or the disk is full.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError("the folder is not empty", where=to, next_step="choose another one")
    card = model_card(run, step, repo=repo, license=license, dataset=dataset)
    place = checkpoint.whole(run, step, training=False)[0].relative_to(run)
    files = [*map(Path, (*WHOLE, *MORE)), *(place / name for name in ("meta.json", *WEIGHTS))]
    beside = to.with_name(f".{to.name}.{os.getpid()}")
    num_bytes = sum((run / name).stat().st_size for name in files if (run / name).exists())
    again = "push again; TMPDIR may name another disk"
    try:
        with writing(to, num_bytes=num_bytes, goes_on=again):
            for name in files:
                if (run / name).exists():
                    (beside / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(run / name, beside / name)
            (beside / CARD).write_text(card, encoding="utf-8")
            checkpoint.whole(beside, training=False)  # every copy is what it was
            beside.replace(to)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return to


def _fetched(repo: str, revision: str | None, step: int | None) -> Path:
    with _asking(repo, "no folder of that name lies here, and the Hub does not give one"):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=ABOUT))
        if absent := [name for name in WHOLE if not (folder / name).is_file()]:
            raise CheckpointError("the Hub repo is no run of lightwam", where=repo, got=f"no {', '.join(absent)}",
                                  expected=", ".join(WHOLE) + " and a checkpoint",
                                  next_step="`lightwam push RUN OWNER/NAME` publishes a run")  # fmt: skip
        known = checkpoint.steps(folder)
        if not known or (step is not None and step not in known):
            raise CheckpointError("no such checkpoint in the Hub repo", where=repo, got=step,
                                  expected=known or "at least one step")  # fmt: skip
        place = f"checkpoints/step_{known[-1] if step is None else step:08d}"
        weights = [*MORE, *(f"{place}/{name}" for name in WEIGHTS)]
        # the small files again: should the repo have got a new commit meanwhile, all are of that one
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*ABOUT, *weights]))


@contextlib.contextmanager
def _asking(repo: str, refusal: str) -> Iterator[None]:
    """What goes wrong with the Hub inside, as a CheckpointError that begins with `refusal`."""
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
