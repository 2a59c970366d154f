"""Push a run to the Hugging Face Hub, with its card."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightwam.encoders.weight_files import REPO
from lightwam.errors import CheckpointError, ConfigError
from lightwam.policy import run_directory
from lightwam.policy.hub import CARD, MORE, WEIGHTS, WHOLE, asking
from lightwam.report.model_card import LICENSE, model_card
from lightwam.system.files import explain_disk_errors


def push(
    run: Path | str,
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
        folder = stage(Path(run), place / "run", repo, step, license=license, dataset=dataset)
        with asking(repo, "the run cannot be pushed to the Hub"):
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
                commit_message=f"lightwam run, step {run_directory.steps(folder)[-1]}",
                delete_patterns=[*WHOLE, *MORE, "checkpoints/*"],
            )
    return str(url)


def stage(
    run: Path, to: Path, repo: str, step: int | None = None, *, license: str = LICENSE, dataset: str = ""
) -> Path:
    """Write what `push` uploads into the new folder `to`, there whole or not at all; returns it.

    CheckpointError when `run` is damaged, `to` holds something, or the disk is full.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError("the folder is not empty", where=to, next_step="choose another one")
    card = model_card(run, step, repo=repo, license=license, dataset=dataset)
    place = run_directory.verify(run, step, training=False)[0].relative_to(run)
    files = [*map(Path, (*WHOLE, *MORE)), *(place / name for name in ("meta.json", *WEIGHTS))]
    beside = to.with_name(f".{to.name}.{os.getpid()}")
    num_bytes = sum((run / name).stat().st_size for name in files if (run / name).exists())
    again = "push again; TMPDIR may name another disk"
    try:
        with explain_disk_errors(to, num_bytes=num_bytes, resume_hint=again):
            for name in files:
                if (run / name).exists():
                    (beside / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(run / name, beside / name)
            (beside / CARD).write_text(card, encoding="utf-8")
            run_directory.verify(beside, training=False)  # every copy is what it was
            beside.replace(to)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return to


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    place = Path(tempfile.gettempdir())
    with explain_disk_errors(place, resume_hint="push again; TMPDIR may name another disk"):
        folder = tempfile.mkdtemp(prefix="lightwam-push-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
