"""Runs on the Hugging Face Hub: fetch what acting needs.

On the Hub a run is a model repo with the layout of a run directory, less what acting does not need: one checkpoint
without the optimiser's state, and only the result of the evaluation. `lightwam.report.publish` pushes it. Every file is
checked against its digest before it is pushed, and when it is loaded.
"""

from __future__ import annotations

from pathlib import Path

from lightwam.errors import CheckpointError
from lightwam.policy import run_directory
from lightwam.system.hub import HUB_ID, hub_errors

REQUIRED_FILES = ("recipe.json", "processing.json")
RESULTS = ("eval/result.json", "eval/open_loop.json")
OPTIONAL_FILES = (run_directory.FACTS, run_directory.FROZEN, run_directory.PROMPTS, *RESULTS)
CARD = "README.md"
INDEX_FILES = [*REQUIRED_FILES, run_directory.FACTS, CARD, *RESULTS, "checkpoints/*/meta.json"]
"""small files, fetched first: they show whether the repo is a run, and which checkpoints it has"""
WEIGHTS = ("model.safetensors", "ema.safetensors")


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
