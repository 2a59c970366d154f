"""The latent cache: bit for bit what the encoder gave, in less room; a stale, torn or damaged one is refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from caches import decoded_cache

from lightwam.config.schema import CameraPlace, CodecConfig, DctConfig
from lightwam.data.cache import base, latents, shards
from lightwam.data.cache.base import Cache
from lightwam.data.cache.encoder import AHEAD, ClipEncoder, Encode
from lightwam.data.cache.frames import FrameCache
from lightwam.data.cache.latents import LatentCache, find_latent_caches, latents_folder
from lightwam.data.cache.record import decode_record, encode_record
from lightwam.data.codec import Codec
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.data.lerobot.writer import LeRobotWriter
from lightwam.data.loader import WindowLoader
from lightwam.encoders.dct import DctLatents
from lightwam.errors import ConfigError, DatasetError
from lightwam.system.files import file_fingerprint
from lightwam.types import Latents, Rank, pool, to_pixels

PLACES = (CameraPlace("front", 0, 0, 16, 16), CameraPlace("wrist", 0, 16, 16, 16))
CONFIG = CodecConfig(canvas=(16, 32), places=PLACES, video_stride=2)
HORIZON, FRAMES = 8, 5
LENGTHS = (7, 3, 12, 5, 4, 2)
SHARD_WINDOWS = 12
SHARDS = (10, 12, 11)  # 7 + 3, 12, 5 + 4 + 2
ABOUT = {"kind": "dct", "digest": "abc", "sizes": (10, 3)}
VIDEO = "videos/observation.images.wrist/chunk-000/file-000.mp4"
CHANNELS = 16
ENCODER = [field.name for field in dataclasses.fields(ClipEncoder)]


def add_episodes(root: Path, lengths: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    with LeRobotWriter(root, 10, "arm", {"front": (16, 16), "wrist": (16, 16)}, ["x"], ["u"]) as out:
        for number, length in enumerate(lengths):
            frames = {name: random.integers(0, 256, (length, 16, 16, 3), np.uint8) for name in ("front", "wrist")}
            vector = random.normal(size=(length, 1)).astype(np.float32)
            out.add_episode(frames, vector, -vector, f"task {number % 2}")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    root = tmp_path_factory.mktemp("data") / "set"
    add_episodes(root, LENGTHS)
    return LeRobotDataset(root)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "latents"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "SHARD_WINDOWS", SHARD_WINDOWS)


@pytest.fixture(scope="module")
def codec(dataset: LeRobotDataset) -> Codec:
    return Codec(CONFIG, dataset.stats["observation.state"], dataset.stats["action"])


def live_encoder(codec: Codec) -> Callable[[np.ndarray], Latents]:
    dct = DctLatents(DctConfig(), [0.1] * CHANNELS, [0.7] * CHANNELS)

    def live(canvases: np.ndarray) -> Latents:
        latents = dct.encode(to_pixels(canvases))
        return Latents(latents[:, :, :1], pool(latents))

    return live


@pytest.fixture(scope="module")
def encode(codec: Codec) -> Encode:
    return live_encoder(codec)


@pytest.fixture
def build(dataset: LeRobotDataset, encode: Encode, path: Path) -> Callable[..., None]:
    def made(into: Path = path, **changes: Any) -> None:
        first = {"encode": encode, "about": ABOUT}
        encoder = ClipEncoder(**first | {name: changes.pop(name) for name in ENCODER if name in changes})
        rest = {"dataset": dataset, "codec_config": CONFIG, "horizon": HORIZON, "encoder": encoder, **changes}
        LatentCache.build(**rest, path=into)

    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def frames_of(cache: LatentCache, start: np.ndarray, steps: int = FRAMES, stride: int = 2) -> np.ndarray:
    last = cache.episode_start[np.searchsorted(cache.episode_start, start, side="right")] - 1
    return np.minimum(start[:, None] + stride * np.arange(steps), last[:, None])


def all_windows(cache: LatentCache) -> np.ndarray:
    return frames_of(cache, np.arange(cache.num_steps))


# --- samples as bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 7, 4096])
def test_a_sample_comes_back_bit_by_bit(dtype: torch.dtype, count: int) -> None:
    words = torch.int16 if dtype == torch.bfloat16 else torch.int32
    span = torch.iinfo(words)
    bits = torch.randint(span.min, span.max, (count,), generator=torch.Generator().manual_seed(count), dtype=words)
    bits[0] = span.min  # -0
    values = bits.view(dtype)
    again = decode_record(encode_record(values, 5), count, dtype, 5, "here")
    assert again.dtype == dtype and torch.equal(again.view(words), bits)


@pytest.mark.parametrize("spoil", ["flip", "short", "empty", "other"])
def test_a_damaged_record_is_noticed(spoil: str) -> None:
    record = bytearray(encode_record(torch.randn(100), 5))
    if spoil == "flip":
        record[50] ^= 1
    del record[{"short": -1, "empty": 0}.get(spoil, len(record)) :]
    with pytest.raises(DatasetError, match=r"damaged(.|\n)*a\.bin sample 3(.|\n)*delete a\.bin and run"):
        decode_record(bytes(record), 100, torch.float32, 6 if spoil == "other" else 5, "a.bin sample 3")


def test_a_record_with_a_right_checksum_and_wrong_numbers_is_noticed() -> None:
    for count in (99, 101):
        with pytest.raises(DatasetError, match="damaged"):
            decode_record(encode_record(torch.ones(100), 0), count, torch.float32, 0, "a.bin sample 0")


# --- what it holds


def test_the_latent_cache_equals_live_encoding(
    build: Callable[..., None], dataset: LeRobotDataset, encode: Encode, path: Path, tmp_path: Path
) -> None:
    build()
    cache, frames = (
        LatentCache.open(path, dataset, CONFIG, HORIZON, ABOUT),
        decoded_cache(dataset, CONFIG, tmp_path / "f"),
    )
    assert isinstance(cache, Cache) and isinstance(frames, Cache)
    windows = all_windows(cache)
    live, got = encode(frames.video(windows)), cache.video(windows)
    assert got.present.dtype == got.clip.dtype == torch.float32
    # stored: the live numbers, once rounded; the pooled first frame: made from the rounded
    assert torch.equal(got.present, live.present.bfloat16().float())
    assert torch.equal(got.clip[:, :, 1:], live.clip[:, :, 1:].bfloat16().float())
    assert torch.equal(got.clip[:, :, :1], pool(got.present))
    torch.testing.assert_close(got.clip[:, :, :1], live.clip[:, :, :1], rtol=2**-8, atol=2**-8)
    for name in ("state", "action", "episode_start", "task_index"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(frames, name))
    assert (cache.tasks, cache.fps, cache.num_steps) == (frames.tasks, frames.fps, sum(LENGTHS))


def test_an_older_cache_with_one_task_an_episode_is_read(
    build: Callable[..., None], dataset: LeRobotDataset, path: Path
) -> None:
    build()
    now, table = LatentCache.open(path), path / "task_index.npy"
    np.save(table, dataset.vectors.task_index)
    about = json.loads((path / "cache.json").read_text())
    about["files"][table.name] = file_fingerprint(table)
    (path / "cache.json").write_text(json.dumps(about))
    then = LatentCache.open(path, dataset, CONFIG, HORIZON, ABOUT)
    assert len(np.load(table)) == len(LENGTHS) == then.num_episodes
    np.testing.assert_array_equal(then.task_index, now.task_index)


def test_in_float32_it_is_live_encoding(
    build: Callable[..., None], dataset: LeRobotDataset, encode: Encode, path: Path, tmp_path: Path
) -> None:
    build(dtype=torch.float32)
    cache, frames = LatentCache.open(path), decoded_cache(dataset, CONFIG, tmp_path / "f")
    windows = all_windows(cache)[::-1].copy()
    for start in range(0, len(windows), 8):  # the encoder's own last bits depend on the batch's size
        live, got = encode(frames.video(windows[start : start + 8])), cache.video(windows[start : start + 8])
        torch.testing.assert_close(got.present, live.present, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.clip, live.clip, rtol=1e-6, atol=1e-6)


def test_windows_repeat_the_last_frame_of_their_episode(build: Callable[..., None], path: Path) -> None:
    seen: list[np.ndarray] = []

    def count(canvases: np.ndarray) -> Latents:
        seen.append(canvases.copy())
        # a latent frame of a constant: the sum of a frame's pixels, so that equal frames are equal numbers
        sums = torch.from_numpy(canvases.astype(np.float32).mean(axis=(2, 3, 4)))[:, None, :, None, None]
        whole = sums.expand(-1, 1, -1, 2, 4).clone()
        return Latents(whole[:, :, :1], pool(whole))

    build(encode=count, dtype=torch.float32, batch_size=4)
    assert max(map(len, seen)) == 4 and {clip.shape[1:] for clip in seen} == {(FRAMES, 16, 32, 3)}
    cache = LatentCache.open(path)
    means = cache.video(all_windows(cache)).present[:, 0, 0, 0, 0]  # of frame i
    clips = cache.video(all_windows(cache)).clip[:, 0, :, 0, 0]
    torch.testing.assert_close(clips, means[torch.from_numpy(all_windows(cache))])
    assert len(means.unique()) == sum(LENGTHS)


def test_progress_counts_windows(build: Callable[..., None]) -> None:
    seen: list[tuple[int, int]] = []
    build(progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 33) and seen[-1] == (33, 33) and seen == sorted(seen)


def test_many_threads_may_read(build: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_FILES", 1)
    build()
    cache = LatentCache.open(path)
    windows = all_windows(cache)
    whole = cache.video(windows).present
    with ThreadPoolExecutor(8) as pool_:
        rows = np.random.default_rng(0).integers(0, len(windows), (200, 4))
        for row, got in zip(rows, pool_.map(lambda r: cache.video(windows[r]).present, rows), strict=True):
            assert torch.equal(got, whole[row])


def test_a_libero_cache_takes_at_most_half_of_the_published_size(build: Callable[..., None], path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(canvases: np.ndarray) -> Latents:
        latents = torch.randn(len(canvases), 16, 3, 28, 56, generator=generator)
        clip = pool(latents)
        clip[:, :, 1:] = torch.randn(len(canvases), 16, 2, 14, 28, generator=generator)  # the widest they could be
        return Latents(latents[:, :, :1], clip)

    build(encode=normal)
    published = 2 * 16 * 3 * 28 * 56
    assert LatentCache.open(path).bytes_per_sample < 0.335 * published
    on_disk = sum(len(data) for name, data in contents(path).items() if name.startswith("shards/"))
    assert on_disk == pytest.approx(LatentCache.open(path).bytes_per_sample * sum(LENGTHS))


@pytest.mark.parametrize(("bytes_at_once", "spool"), [(1, 100), (16 * 32 * 3 * 3 * 5, 10**9)])
def test_its_bytes_do_not_depend_on_how_much_is_in_memory(
    build: Callable[..., None], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    bytes_at_once: int, spool: int,
) -> None:  # fmt: skip
    batches: list[int] = []

    def noted(canvases: np.ndarray) -> Latents:
        batches.append(len(canvases))
        # every frame of every window counts
        sums = torch.from_numpy(canvases.astype(np.float32).mean(axis=(2, 3, 4)))[:, None, :, None, None]
        whole = sums.expand(-1, 1, -1, 2, 4).clone()
        return Latents(whole[:, :, :1], pool(whole))

    build(tmp_path / "whole", encode=noted, batch_size=3)
    first, batches = batches, []
    monkeypatch.setattr(base, "MAX_DECODED_BYTES", bytes_at_once)
    monkeypatch.setattr(latents, "SPOOL_BYTES", spool)
    build(encode=noted, batch_size=3)
    assert batches == first and sum(batches) == sum(LENGTHS)
    assert contents(path) == contents(tmp_path / "whole")


def test_each_make_has_a_folder_and_an_older_cache_is_taken(
    build: Callable[..., None], dataset: LeRobotDataset, path: Path
) -> None:
    def place(config: CodecConfig = CONFIG, horizon: int = HORIZON, about: dict[str, Any] = ABOUT) -> Path:
        return latents_folder(path, dataset, config, horizon, about)

    other = dataclasses.replace(CONFIG, places=PLACES[::-1])
    places = {place(), place(other), place(horizon=16), place(about={"kind": "dct", "digest": "xyz"})}
    assert (
        len(places) == 4 and {one.parent for one in places} == {path} and place().name.startswith("dct-16x32-8steps-")
    )
    assert find_latent_caches(path) == []
    build(place())
    with pytest.raises(DatasetError, match=r"no latent cache here(.|\n)*dct-16x32-8steps-\w+: horizon: 8 in the cache"):
        LatentCache.open(place(horizon=16), dataset, CONFIG, 16, ABOUT)
    build(path, codec_config=other, share=Rank(0, 2))  # where earlier versions made it, and begun only
    assert place(other) == path and place() != path
    assert find_latent_caches(path) == [path, place()]


def test_too_little_disk_space_is_refused_after_the_first_batch(
    build: Callable[..., None], encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def noted(canvases: np.ndarray) -> Latents:
        batches.append(len(canvases))
        return encode(canvases)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9))
    with pytest.raises(DatasetError, match=r"fit on the disk(.|\n)*got: 0.0 MiB free(.|\n)*--cache DIR"):
        build(encode=noted)
    assert 1 <= len(batches) <= 2 + AHEAD, "those that were encoded ahead"


# --- never broken by a kill, never half


def test_the_folder_is_what_the_documents_say(build: Callable[..., None], path: Path) -> None:
    build()
    shards = [f"shards/{number:05d}.{kind}" for number in range(len(SHARDS)) for kind in ("bin", "npy")]
    tables = [f"{name}.npy" for name in ("action", "episode_start", "state", "task_index")]
    assert sorted(contents(path)) == sorted(["cache.json", *tables, *shards])
    about = json.loads((path / "cache.json").read_text())
    assert [count for count, _ in about["shards"]] == list(SHARDS)


@pytest.mark.parametrize(("calls", "shards"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (6, 2)])
def test_a_failed_build_resumes_to_the_same_bytes(
    build: Callable[..., None], encode: Encode, path: Path, tmp_path: Path, calls: int, shards: int
) -> None:
    build(tmp_path / "unbroken")
    left, done = calls, []

    def failing(canvases: np.ndarray) -> Latents:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("out of memory")
        return encode(canvases)

    def counting(canvases: np.ndarray) -> Latents:
        done.append(len(canvases))
        return encode(canvases)

    with pytest.raises(RuntimeError, match="out of memory"):
        build(encode=failing)
    whole = sum(SHARDS[:shards])
    with pytest.raises(DatasetError, match=rf"not finished(.|\n)*got: {shards} of 3 shards(.|\n)*lightwam cache"):
        LatentCache.open(path)
    seen: list[tuple[int, int]] = []
    build(encode=counting, progress=lambda *row: seen.append(row))
    assert sum(done) == sum(LENGTHS) - whole and seen[0] == (whole, 33)
    assert contents(path) == contents(tmp_path / "unbroken")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../shared"]
import test_latent_cache as test
from lightwam.data.cache import latents

latents.SHARD_WINDOWS = test.SHARD_WINDOWS
data = test.LeRobotDataset(Path(sys.argv[2]))
codec = test.Codec(test.CONFIG, data.stats["observation.state"], data.stats["action"])
rename = os.replace

def die_at_the_index(source, target):
    if Path(target).name == "00001.npy":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.replace = die_at_the_index
encoder = test.ClipEncoder(test.live_encoder(codec), test.ABOUT)
test.LatentCache.build(data, test.CONFIG, test.HORIZON, encoder, Path(sys.argv[3]))
"""


def test_a_killed_build_resumes_to_the_same_bytes(
    build: Callable[..., None], dataset: LeRobotDataset, path: Path, tmp_path: Path
) -> None:
    build(tmp_path / "unbroken")
    arguments = [str(Path(__file__).parent), str(dataset.root), str(path)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(name.endswith(".part") for name in contents(path)) and "shards/00001.bin" in contents(path)
    with pytest.raises(DatasetError, match="1 of 3 shards"):
        LatentCache.open(path)
    build()
    assert contents(path) == contents(tmp_path / "unbroken")
    assert sorted(os.listdir(path)) == sorted(os.listdir(tmp_path / "unbroken"))


@pytest.mark.parametrize("world", [2, 5])
def test_many_processes_make_the_bytes_of_one(
    build: Callable[..., None], path: Path, tmp_path: Path, world: int
) -> None:
    build(tmp_path / "one")
    for rank in reversed(range(world)):  # the first shard, and so the whole, comes last
        assert not (path / "cache.json").exists()
        build(share=Rank(rank, world))
    assert contents(path) == contents(tmp_path / "one")


def test_processes_may_run_and_finish_at_once(build: Callable[..., None], path: Path, tmp_path: Path) -> None:
    build(tmp_path / "one")
    with ThreadPoolExecutor(3) as pool_:
        list(pool_.map(lambda rank: build(share=Rank(rank, 3)), range(3)))
    assert contents(path) == contents(tmp_path / "one")


def test_leftovers_are_removed_by_their_owner(build: Callable[..., None], path: Path) -> None:
    (path / "shards").mkdir(parents=True)
    names = [f"00001.bin.{rank}-77-abcd.part" for rank in range(4)]
    for name in names:
        (path / "shards" / name).write_bytes(b"half")
    build(share=Rank(1, 2))
    left = {name for name in contents(path) if name.endswith(".part")}
    assert left == {f"shards/{names[0]}", f"shards/{names[2]}"}  # the other process may be writing these
    build(share=Rank(0, 2))
    assert not any(name.endswith(".part") for name in contents(path))


def test_a_complete_cache_is_not_built_again(build: Callable[..., None], path: Path) -> None:
    build()
    times = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    build(encode=lambda canvases: pytest.fail("nothing is missing"))
    assert times == {file: file.stat().st_mtime_ns for file in path.rglob("*")}


@pytest.mark.parametrize("call", range(8))
def test_a_full_disk_leaves_complete_files(
    build: Callable[..., None], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    build(tmp_path / "unbroken")
    calls, sync = iter(range(100)), os.fsync

    def full(file: int) -> None:
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DatasetError, match=r"the disk is full(.|\n)*MiB free(.|\n)*finished shards are kept"):
            build()
    assert not any(name.endswith(".part") for name in contents(path))
    build()
    assert contents(path) == contents(tmp_path / "unbroken")


# --- never stale, torn or damaged without a word


def test_one_flipped_byte_is_found_on_reading(
    build: Callable[..., None], path: Path, tmp_path: Path, dataset: LeRobotDataset
) -> None:
    build()
    good, file = LatentCache.open(path), path / "shards" / "00001.bin"
    assert good.problems() == []
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    cache = LatentCache.open(path, dataset)
    seen: list[tuple[int, int]] = []
    faults = cache.problems(lambda *row: seen.append(row))
    assert len(faults) == 1 and seen[0] == (0, 33) and seen[-1] == (33, 33)
    row = int(faults[0].split(" sample ")[1].split()[0])
    assert faults[0] == f"{file} sample {row} (window {10 + row}): another checksum than was written"
    windows = all_windows(cache)
    with pytest.raises(
        DatasetError, match=rf"damaged(.|\n)*00001\.bin sample {row} (.|\n)*delete .*00001\.bin and run"
    ):
        cache.video(windows)
    cache.video(np.delete(windows, 10 + row, axis=0))
    file.unlink()  # the next step that it names
    build()
    assert LatentCache.open(path).problems() == []


def test_every_single_byte_counts(build: Callable[..., None], path: Path) -> None:
    build()
    file = path / "shards" / "00002.bin"
    data = file.read_bytes()
    for place in range(0, len(data), 97):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert LatentCache.open(path).problems()
        except DatasetError as error:
            assert place < 40 and "another cache" in str(error)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("shards/00001.bin", lambda data: data[:-1], r"00001\.bin\n.*got: \d+ bytes\n.*expected: \d+ bytes"),
        ("shards/00001.bin", None, r"00001\.bin\n.*no such file"),
        ("shards/00001.npy", None, r"00001\.npy\n.*no such file"),
        ("shards/00001.npy", lambda data: data[:-8], r"00001\.npy"),
        ("shards/00001.npy", lambda data: b"", r"00001\.npy"),
        ("shards/00001.npy", lambda data: data[:-8] + bytes(8), r"00001\.npy\n(.|\n)*expected: 13 rising offsets"),
        (
            "state.npy",
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            r"table(.|\n)*state\.npy: \d+ bytes, \w+, not \d+ bytes, \w+",
        ),
        ("state.npy", None, r"table(.|\n)*state\.npy: no such file"),
        ("cache.json", lambda data: data[:-9], r"must be JSON"),
        ("cache.json", lambda data: b"{}", r"format: None in the cache, latents 1 now"),
    ],
)
def test_a_torn_one_is_refused_and_mended(
    build: Callable[..., None], path: Path, name: str, spoil: Callable[[bytes], bytes] | None, message: str
) -> None:
    build()
    before = contents(path)
    (path / name).unlink()
    if spoil is not None:
        (path / name).write_bytes(spoil(before[name]))
    with pytest.raises(DatasetError, match=message):
        LatentCache.open(path)
    if name == "cache.json":
        return
    build()
    assert contents(path) == before


def test_a_shard_of_another_cache_is_refused(build: Callable[..., None], path: Path, tmp_path: Path) -> None:
    build()
    build(tmp_path / "other", about={"kind": "other"})
    for kind in ("bin", "npy"):
        name = f"shards/00001.{kind}"
        (path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(DatasetError, match=r"00001\.bin\n.*got: the shard of another cache"):
        LatentCache.open(path)


def test_a_shard_that_was_replaced_is_refused_and_mended(
    build: Callable[..., None], encode: Encode, path: Path, tmp_path: Path
) -> None:
    build()
    build(tmp_path / "other", encode=lambda canvases: Latents(*(0 * part for part in encode(canvases))))
    for kind in ("bin", "npy"):
        name = f"shards/00001.{kind}"
        (path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(DatasetError, match=r"were replaced(.|\n)*got: shard 1\n"):
        LatentCache.open(path)
    build()
    assert LatentCache.open(path).problems() == []


def test_one_of_another_make_is_refused_by_name(
    build: Callable[..., None], dataset: LeRobotDataset, path: Path, tmp_path: Path
) -> None:
    build()
    LatentCache.open(path, dataset, CONFIG, HORIZON, ABOUT)
    LatentCache.open(path, dataset, dataclasses.replace(CONFIG, state_norm="z_score"), HORIZON, ABOUT)
    add_episodes(tmp_path / "more", (*LENGTHS, 2))
    for changes, message in (
        ({"dataset": LeRobotDataset(tmp_path / "more")}, rf"dataset.{VIDEO}: \d+ bytes, \w+ in the cache, \d+ bytes"),
        ({"codec_config": dataclasses.replace(CONFIG, canvas=(32, 32))}, r"codec.canvas: \[16, 32\] in the cache"),
        ({"codec_config": dataclasses.replace(CONFIG, places=PLACES[::-1])}, "codec.places"),
        ({"codec_config": dataclasses.replace(CONFIG, video_stride=4)}, "video_stride: 2 in the cache, 4 now"),
        ({"horizon": 16}, "horizon: 8 in the cache, 16 now"),
        ({"about": {**ABOUT, "digest": "xyz"}}, "encoder.digest: abc in the cache, xyz now"),
    ):
        with pytest.raises(DatasetError, match=rf"made from something else(.|\n)*{message}"):
            LatentCache.open(path, **changes)
        with pytest.raises(DatasetError, match=rf"made from something else(.|\n)*{message}"):
            build(**changes)
    with pytest.raises(DatasetError, match=r"dtype: bfloat16 in the cache, float32 now"):
        build(dtype=torch.float32)
    assert LatentCache.open(path).problems() == []


def test_a_started_or_picture_dataset_is_not_replaced(
    build: Callable[..., None], dataset: LeRobotDataset, path: Path, tmp_path: Path
) -> None:
    build(share=Rank(0, 2))
    with pytest.raises(DatasetError, match=r"made from something else(.|\n)*horizon: 8 in the cache, 16 now"):
        build(horizon=16)
    FrameCache.build(dataset, CONFIG, tmp_path / "frames")
    with pytest.raises(DatasetError, match=r"format: 1 in the cache, latents 1 now"):
        build(tmp_path / "frames")
    with pytest.raises(DatasetError, match=r"format: 1 in the cache, latents 1 now"):
        LatentCache.open(tmp_path / "frames")
    build(share=Rank(1, 2))
    with pytest.raises(DatasetError, match="got: shards"):
        FrameCache.build(dataset, CONFIG, path)
    assert LatentCache.open(path).problems() == []


def test_none_is_refused(path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no latent cache here(.|\n)*lightwam cache"):
        LatentCache.open(path)


def test_a_camera_that_the_dataset_lacks_is_named(build: Callable[..., None]) -> None:
    places = (dataclasses.replace(PLACES[0], camera="frnt"),)
    with pytest.raises(DatasetError, match=r"expected: frnt\n.*did you mean 'front'"):
        build(codec_config=dataclasses.replace(CONFIG, places=places))


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, torch.float32), (np.inf, torch.float32), (3.4e38, torch.bfloat16)]
)
def test_numbers_that_are_not_finite_are_refused(
    build: Callable[..., None], encode: Encode, value: float, dtype: torch.dtype
) -> None:
    calls = iter(range(100))

    def broken(canvases: np.ndarray) -> Latents:
        latents = encode(canvases)
        if next(calls) == 3:
            latents.clip[1, 0, 1, 0, 0] = value
        return latents

    with pytest.raises(DatasetError, match=r"not finite(.|\n)*episode 2 frame 9"):
        build(encode=broken, dtype=dtype)


# --- training from it


def test_the_loader_gives_latents(
    build: Callable[..., None], codec: Codec, path: Path, tmp_path: Path, dataset: LeRobotDataset, encode: Encode
) -> None:
    build(dtype=torch.float32)
    cache, frames = LatentCache.open(path), decoded_cache(dataset, CONFIG, tmp_path / "f")
    with WindowLoader(cache, codec, HORIZON, 4, 0) as coded, WindowLoader(frames, codec, HORIZON, 4, 0) as pictures:
        for _ in range(10):
            one, other = coded.next(), pictures.next()
            live = encode(other.video)
            torch.testing.assert_close(one.video.present, live.present, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(one.video.clip, live.clip, rtol=1e-6, atol=1e-6)
            for name in ("state", "action", "action_is_pad", "frame_is_pad", "task"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_loader_refuses_what_it_cannot_be_used_for(
    build: Callable[..., None], codec: Codec, path: Path, dataset: LeRobotDataset
) -> None:
    build()
    cache = LatentCache.open(path)

    def loader(horizon: int = HORIZON, shift: int = 0, **changes: Any) -> None:
        other = Codec(dataclasses.replace(CONFIG, **changes), codec.state, codec.action)
        WindowLoader(cache, other, horizon, 4, 0, shift).close()

    loader()
    with pytest.raises(ConfigError, match=r"latents cannot be shifted(.|\n)*got: 4(.|\n)*set it to 0"):
        loader(shift=4)
    with pytest.raises(ConfigError, match=r"another canvas(.|\n)*\(16, 32\)(.|\n)*\(32, 32\)"):
        loader(canvas=(32, 32))
    for changes in ({"horizon": 16}, {"video_stride": 4}):
        with pytest.raises(ConfigError, match=r"another window(.|\n)*horizon 8, video_stride 2"):
            loader(**changes)
