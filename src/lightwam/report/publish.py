"""Push a run to the Hugging Face Hub, with its model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from lightwam.errors import CheckpointError, ConfigError
from lightwam.policy import run_directory
from lightwam.policy.hub import CARD, OPTIONAL_FILES, REQUIRED_FILES, WEIGHTS
from lightwam.report.model_card import LICENSE, model_card
from lightwam.system.files import explain_disk_errors
from lightwam.system.hub import REPO, hub_errors

RETRY = "push again; TMPDIR may name another disk"


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
    """Upload the run's checkpoint of `step` (default: `default_step`) as `repo`, OWNER/NAME; returns its address.

    A missing repo is created, `private` or public; an existing public one is refused when `private` is asked for. The
    run in it is replaced in a single commit; other files stay. `token` is the Hub's, by default that of `hf auth login`
    or HF_TOKEN. `license` and `dataset` (a Hub id) are written on the card. CheckpointError when the run is damaged, or
    the Hub refuses or cannot be reached; ConfigError when `repo` is no repo id.
    """
    if not REPO.fullmatch(repo):
        raise ConfigError("a Hub repo must have the form OWNER/NAME", where="repo", got=repr(repo))
    with explain_disk_errors(Path(tempfile.gettempdir()), resume_hint=RETRY):
        temporary = tempfile.TemporaryDirectory(prefix="lightwam-push-", ignore_cleanup_errors=True)
    with temporary:
        folder = stage(Path(run), Path(temporary.name) / "run", repo, step, license=license, dataset=dataset)
        with hub_errors(repo, "the run cannot be pushed to the Hub"):
            from huggingface_hub import HfApi

            api = HfApi(token=token)
            url = api.create_repo(repo, private=private, exist_ok=True)
            if private and not api.repo_info(repo).private:
                what, fix = "the repo exists and is public", "make it private in its settings, or choose another name"
                raise CheckpointError(what, where=repo, got="private=True", next_step=fix)
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"lightwam run, step {run_directory.steps(folder)[-1]}",
                delete_patterns=[*REQUIRED_FILES, *OPTIONAL_FILES, "checkpoints/*"],
            )
    return str(url)


def stage(
    run: Path, to: Path, repo: str, step: int | None = None, *, license: str = LICENSE, dataset: str = ""
) -> Path:
    """Write what `push` uploads into the new folder `to`, completely or not at all; returns it.

    CheckpointError without the `hub` extra, when `run` is damaged, `to` is not empty, or the disk is full.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError("the folder must be new or empty", where=to, next_step="choose another folder")
    card = model_card(run, step, repo=repo, license=license, dataset=dataset)
    folder = run_directory.verify(run, step, training=False)[0].relative_to(run)
    names = [*map(Path, (*REQUIRED_FILES, *OPTIONAL_FILES)), *(folder / name for name in ("meta.json", *WEIGHTS))]
    files = [name for name in names if (run / name).exists()]
    temporary = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with explain_disk_errors(to, num_bytes=sum((run / name).stat().st_size for name in files), resume_hint=RETRY):
            for name in files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run / name, temporary / name)
            (temporary / CARD).write_text(card, encoding="utf-8")
            run_directory.verify(temporary, training=False)  # every copy has the digest of its original
            temporary.replace(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return to
