"""LeRobot datasets on the Hugging Face Hub: one commit of a repo, and of its videos only those of the needed cameras.

Files lie in the Hub's own cache, which other programs share: it is read, and nothing is written beside them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from lightwam.data.lerobot.features import Camera, FeatureNames, read_cameras
from lightwam.data.lerobot.meta import bad_info_key, path_of, read_episodes, read_version
from lightwam.errors import DatasetError
from lightwam.system.files import read_json
from lightwam.system.hub import COMMIT, HUB_ID, hub_errors
from lightwam.system.progress import Say

LOCAL = ("data", "runs")
"""owners that are never looked up: lightwam's own folders, which may not exist yet"""
SCHEME = re.compile(r"hf:/{1,2}datasets/")
TIMEOUT_SECONDS = 10.0
META = "meta/*"
RETRY = "run the same command again: complete files are kept"
_FOLDER = re.compile(r"datasets--(.+?)--(.+)")


def find_dataset(
    name: Path | str,
    cameras: Collection[str] | None = None,
    names: FeatureNames | None = None,
    *,
    commit: str = "",
    say: Say = print,
) -> Path:
    """Return the folder of a dataset; a Hub id, OWNER/NAME or OWNER/NAME@REVISION, is fetched if no such path exists.

    The tables are fetched, and the videos of `cameras` (None: all; (): tables only), which are named as `names` names
    them. `commit` is fetched instead of the newest one that the revision leads to. What is cached is not fetched again;
    without a network, a cached copy is used, and `say` is told. DatasetError when the repo or revision is missing,
    private, gated or no dataset, the Hub cannot be reached, or the disk is too small.
    """
    path = Path(name).expanduser()
    asked = HUB_ID.fullmatch(SCHEME.sub("", str(name), count=1))
    if path.exists() or not asked or str(name).partition("/")[0] in LOCAL:
        return path
    repo, revision = asked[1], asked[2]
    what = "there is no folder of that name, and the Hub does not provide the dataset"
    with hub_errors(repo, what, DatasetError, RETRY):
        commit = commit or (revision if COMMIT.fullmatch(revision or "") else _newest(repo, revision, say))
        root = _fetch(repo, commit, [META])
        if not (root / "meta" / "info.json").is_file():
            what = "the Hub repo must be a LeRobot dataset"
            raise DatasetError(what, where=f"{repo}@{commit[:12]}", got="no meta/info.json")
    info = read_json(root / "meta" / "info.json")
    videos = _videos(root, info, cameras, names)
    with hub_errors(f"{repo}@{commit}", "the dataset's files cannot be fetched from the Hub", DatasetError, RETRY):
        if missing := [path for path in _files(root, info, videos) if not path.is_file()]:
            _announce(repo, commit, root, missing, say)
            _fetch(repo, commit, _patterns(root, info, videos))
    return root


def hub_id(root: Path) -> str:
    """Return OWNER/NAME@COMMIT for a folder that `find_dataset` fetched, and "" for any other."""
    repo, snapshots, commit = ("", "", *root.absolute().parts)[-3:]
    owner = _FOLDER.fullmatch(repo)
    return f"{owner[1]}/{owner[2]}@{commit}" if owner and snapshots == "snapshots" and COMMIT.fullmatch(commit) else ""


def _newest(repo: str, revision: str | None, say: Say) -> str:
    """Return the commit that a revision leads to; without a network, the cached one."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    unreachable = ""
    try:  # asked first, as the download would use the cached commit without a word
        HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:
        unreachable = type(error).__name__
    commit = _fetch(repo, revision, [META]).name
    if unreachable:
        say(f"{repo}: the Hub cannot be reached ({unreachable}); using the cached commit {commit[:12]}")
    return commit


def _fetch(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch the files that match into the Hub's cache, and return their folder; cached ones cost no request.

    The Hub's progress bars are shown for files of a size, not for the tables of the meta folder.
    """
    from huggingface_hub import snapshot_download, utils

    bars: Any = utils  # its stubs lack these functions
    hide = patterns == [META] and not bars.are_progress_bars_disabled()
    if hide:
        bars.disable_progress_bars()
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    finally:
        if hide:
            bars.enable_progress_bars()


def _videos(
    root: Path, info: Mapping[str, Any], cameras: Collection[str] | None, names: FeatureNames | None
) -> dict[str, Camera]:
    """Return the features of the wanted cameras that are stored as videos; the reader refuses the other features."""
    features, where = info.get("features"), str(root / "meta" / "info.json")
    if not isinstance(features, dict):
        raise bad_info_key(root, "features", features, "an object")
    if cameras is not None:
        known = read_cameras(features, names or FeatureNames(), where)[0] if cameras else {}
        return {name: camera for name, camera in known.items() if name in cameras and camera.stored == "video"}
    videos = [key for key, about in features.items() if isinstance(about, dict) and about.get("dtype") == "video"]
    return {key: Camera(key, (0, 0), "video") for key in videos}


def _files(root: Path, info: Mapping[str, Any], videos: Mapping[str, Camera]) -> list[Path]:
    """List the data files, and the videos."""
    episodes, _ = read_episodes(root, read_version(root, info), info, videos)
    paths = {episode.data_path for episode in episodes}
    return sorted(paths | {clip.path for episode in episodes for clip in episode.clips.values()})


def _patterns(root: Path, info: Mapping[str, Any], videos: Mapping[str, Camera]) -> list[str]:
    """Return patterns that match `_files`: few, as a dataset of v2 has a file an episode."""
    numbers = dict.fromkeys(("chunk_index", "file_index", "episode_chunk", "episode_index"), _Any())
    paths = [path_of(root, info, "data_path", **numbers)]
    for camera in videos.values():
        paths.append(path_of(root, info, "video_path", video_key=escape(camera.key), **numbers))
    return [path.relative_to(root).as_posix() for path in paths]


class _Any:
    """A number of a path pattern that stands for all numbers."""

    def __format__(self, spec: str) -> str:
        return "*"


def _announce(repo: str, commit: str, root: Path, missing: list[Path], say: Say) -> None:
    """Tell how much will be fetched; DatasetError when the disk is too small for it."""
    from huggingface_hub import HfApi

    tree = HfApi().list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
    sizes = {entry.path: getattr(entry, "size", 0) for entry in tree}  # folders have none
    needed = sum(sizes.get(path.relative_to(root).as_posix(), 0) for path in missing)
    free = shutil.disk_usage(root).free
    if needed > free:
        got, step = f"{free / 1e9:.1f} GB free", "free some, or set HF_HOME to a folder on another disk"
        what, expected = "the dataset must fit on the disk of the Hub's cache", f"{needed / 1e9:.1f} GB"
        raise DatasetError(what, where=root, got=got, expected=expected, next_step=step)
    say(f"{repo}@{commit[:12]}: fetching {len(missing)} file{'s' * (len(missing) > 1)}, {needed / 1e6:.1f} MB")
