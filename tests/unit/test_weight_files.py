import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from lightwam.encoders.tensor_check import check_tensors, shared_prefix
from lightwam.encoders.weight_files import Part, digest, locate, read_tensors
from lightwam.errors import CheckpointError

PARTS: tuple[Part, ...] = ("backbone", "vae", "text_encoder", "tokenizer")
OFFICIAL = (
    "README.md",
    "config.json",
    "assets/logo.png",
    "diffusion_pytorch_model.safetensors",
    "Wan2.1_VAE.pth",
    "models_t5_umt5-xxl-enc-bf16.pth",
    "google/umt5-xxl/spiece.model",
    "google/umt5-xxl/tokenizer.json",
    "google/umt5-xxl/tokenizer_config.json",
)
DIFFUSERS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer.json",
)
INDEX = "diffusion_pytorch_model.safetensors.index.json"
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(1)}
PLACES = {"a.weight": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
PLACES |= {"c": "m-00002-of-00002.safetensors"}


def laid_out(folder: Path, names: tuple[str, ...]) -> Path:
    """Empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def sharded(folder: Path, places: dict[str, str] = PLACES) -> Path:
    """TENSORS in shards; the index."""
    for shard in set(PLACES.values()):
        save_file({name: TENSORS[name] for name, place in PLACES.items() if place == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return folder / INDEX


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor] = TENSORS) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_parts_of_the_official_layout(tmp_path: Path) -> None:
    laid_out(tmp_path, OFFICIAL)
    assert [locate(tmp_path, part).relative_to(tmp_path).as_posix() for part in PARTS] == [
        "diffusion_pytorch_model.safetensors",
        "Wan2.1_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "google/umt5-xxl",
    ]


def test_parts_of_diffusers_layout(tmp_path: Path) -> None:
    laid_out(tmp_path, DIFFUSERS)
    found = [locate(str(tmp_path), part).relative_to(tmp_path).as_posix() for part in PARTS]
    assert found == ["transformer", "vae", "text_encoder", "tokenizer"]


def test_official_shards_are_found_by_their_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    laid_out(tmp_path, ("Wan2.1_VAE.pth",))
    for name in set(PLACES.values()):
        (tmp_path / name).rename(tmp_path / f"diffusion_pytorch_{name.replace('m-', 'model-')}")
    places = {name: f"diffusion_pytorch_{shard.replace('m-', 'model-')}" for name, shard in PLACES.items()}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert locate(tmp_path, "backbone") == tmp_path / INDEX
    assert_same(read_tensors(tmp_path / INDEX))


def test_a_backbone_saved_by_torch_is_found(tmp_path: Path) -> None:
    laid_out(tmp_path, ("diffusion_pytorch_model.pth",))
    assert locate(tmp_path, "backbone") == tmp_path / "diffusion_pytorch_model.pth"


def test_a_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    laid_out(tmp_path / "wan", OFFICIAL)
    assert locate("~/wan", "vae") == tmp_path / "wan" / "Wan2.1_VAE.pth"


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_without_the_part_lists_its_files(tmp_path: Path, part: Part) -> None:
    laid_out(tmp_path, ("notes.txt", "unet/config.json"))
    with pytest.raises(CheckpointError, match=f"there is no {part}") as caught:
        locate(tmp_path, part)
    assert caught.value.where == tmp_path and caught.value.got == "notes.txt, unet/"
    assert "official layout" in str(caught.value.expected) and "Wan-AI/" in caught.value.next_step


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got: nothing"):
        locate(tmp_path, "vae")


@pytest.mark.parametrize("part", PARTS)
def test_two_layouts_in_one_folder_are_refused(tmp_path: Path, part: Part) -> None:
    laid_out(tmp_path, OFFICIAL + DIFFUSERS)
    with pytest.raises(CheckpointError, match=f"the {part} is there twice"):
        locate(tmp_path, part)


def test_two_backbones_or_a_lone_shard_are_refused(tmp_path: Path) -> None:
    laid_out(tmp_path, ("diffusion_pytorch_model-00001-of-00006.safetensors",))
    with pytest.raises(CheckpointError, match="there must be one set of backbone files") as caught:
        locate(tmp_path, "backbone")
    assert "-00001-of-00006" in str(caught.value.got) and "index" in str(caught.value.expected)
    (tmp_path / "diffusion_pytorch_model-00001-of-00006.safetensors").unlink()
    laid_out(tmp_path, ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(CheckpointError, match="there must be one set of backbone files"):
        locate(tmp_path, "backbone")


@pytest.mark.parametrize("source", ["", "no-such-folder", "/no/such/folder", "../a/b/c", "a/b/c", "~none/x", "a//b"])
def test_neither_folder_nor_repo_is_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match="must be a folder or a Hub repo") as caught:
        locate(source, "vae")
    assert repr(source) in str(caught.value.got)


def test_a_file_and_a_path_that_is_not_there_are_refused(tmp_path: Path) -> None:
    laid_out(tmp_path, ("vae.pth",))
    with pytest.raises(CheckpointError, match=r"vae\.pth', a file"):
        locate(str(tmp_path / "vae.pth"), "vae")
    with pytest.raises(CheckpointError, match="must be a folder or a Hub repo"):
        locate(Path("owner/name"), "vae")


class Hub:
    """snapshot_download's stand-in, with its own filter: fetches what the patterns allow of a repo's files."""

    def __init__(self, snapshot: Path, repo: tuple[str, ...]) -> None:
        self.snapshot, self.repo = snapshot, repo

    def __call__(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        from huggingface_hub.utils import filter_repo_objects

        assert repo_id == "owner/name"
        laid_out(self.snapshot, tuple(filter_repo_objects(self.repo, allow_patterns=allow_patterns)))
        return str(self.snapshot)

    def fetched(self) -> set[str]:
        return {path.relative_to(self.snapshot).as_posix() for path in self.snapshot.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("repo", "part", "start"),
    [
        (OFFICIAL, "backbone", "diffusion_pytorch_model"),
        (OFFICIAL, "vae", "Wan2.1_VAE"),
        (OFFICIAL, "text_encoder", "models_t5"),
        (OFFICIAL, "tokenizer", "google/"),
        (DIFFUSERS, "backbone", "transformer/"),
        (DIFFUSERS, "vae", "vae/"),
        (DIFFUSERS, "text_encoder", "text_encoder/"),
        (DIFFUSERS, "tokenizer", "tokenizer/"),
    ],
)
def test_of_a_repo_only_the_part_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: tuple[str, ...], part: Part, start: str
) -> None:
    hub = Hub(tmp_path, repo)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    place = locate("owner/name", part)
    assert hub.fetched() == {name for name in repo if name.startswith(start)}
    assert place.is_relative_to(tmp_path) and place.exists() and place != tmp_path


def test_a_repo_without_the_part_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(tmp_path / "never made", ("README.md",)))
    with pytest.raises(CheckpointError, match="there is no vae") as caught:
        locate("owner/name", "vae")
    assert "owner/name" in str(caught.value.where) and caught.value.got == "nothing"


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("no such repo"), RuntimeError("torn stream")])
def test_refusals_of_the_hub_are_reported(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="cannot be fetched from the Hub") as caught:
        locate("owner/name", "text_encoder")
    assert str(error) in str(caught.value.got) and caught.value.where == "owner/name"


def test_without_the_hubs_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'lightwam\[wan\]'"):
        locate("owner/name", "vae")


def test_every_format_gives_the_same_bits(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "one.safetensors")
    assert_same(read_tensors(tmp_path / "one.safetensors"))
    assert_same(read_tensors(tmp_path))
    for name, zipped in (("new.pth", True), ("old.pth", False), ("parameters.pt", True)):
        torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert_same(read_tensors(tmp_path / name))
    torch.save({"w": nn.Parameter(torch.ones(2))}, tmp_path / "parameters.pt")
    assert torch.equal(read_tensors(tmp_path / "parameters.pt")["w"], torch.ones(2))
    (tmp_path / "shards").mkdir()
    sharded(tmp_path / "shards")
    assert_same(read_tensors(tmp_path / "shards"))


def test_a_partial_set_of_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / PLACES["b"]).unlink()
    for path in (tmp_path, tmp_path / INDEX):
        with pytest.raises(CheckpointError, match="shards are missing") as caught:
            read_tensors(path)
        assert "1 of 2 shards" in str(caught.value.got) and PLACES["b"] in str(caught.value.got)


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path).unlink()
    with pytest.raises(CheckpointError, match="there must be one set of weights files"):
        read_tensors(tmp_path)


def test_a_folder_without_weights_lists_its_files(tmp_path: Path) -> None:
    laid_out(tmp_path, ("config.json", "diffusion_pytorch_model.bin"))
    with pytest.raises(CheckpointError, match="there are no weights files") as caught:
        read_tensors(tmp_path)
    assert caught.value.got == "config.json, diffusion_pytorch_model.bin"


def test_two_files_that_claim_one_tensor_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    first = tmp_path / PLACES["a.weight"]
    save_file({"a.weight": TENSORS["a.weight"], "b": torch.zeros(4)}, first)
    with pytest.raises(CheckpointError, match="does not hold what the index says") as caught:
        read_tensors(tmp_path)
    assert caught.value.where == first and caught.value.got == "b (not listed here)"
    save_file({"b": torch.zeros(4)}, tmp_path / "another.safetensors")
    with pytest.raises(CheckpointError, match="there must be one set of weights files"):
        read_tensors(tmp_path)


def test_a_shard_without_a_tensor_that_the_index_places_there_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, PLACES | {"d": PLACES["a.weight"]})
    with pytest.raises(CheckpointError, match=r"d \(absent\)"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    sharded(tmp_path).write_text(content)
    with pytest.raises(CheckpointError, match="index of"):
        read_tensors(tmp_path / INDEX)


@pytest.mark.parametrize("name", ["torn.safetensors", "torn.pth"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_torn_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    save_file(TENSORS, path) if path.suffix == ".safetensors" else torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tensors(path)
    assert caught.value.where == path and "torn" in caught.value.next_step


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth", INDEX])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / name)


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tensors(tmp_path / "trap.pth")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"state_dict": TENSORS, "a": torch.ones(1)}, "state_dict: dict"),
        ({"a": torch.ones(1), "step": 3}, "step: int"),
        ({3: torch.ones(1)}, "3 for a name"),
        ([torch.ones(1)], "the file: list"),
    ],
)
def test_a_file_without_a_table_of_tensors_is_refused(tmp_path: Path, content: Any, got: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a table name -> tensor") as caught:
        read_tensors(tmp_path / "x.pt")
    assert caught.value.got == got


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    laid_out(tmp_path, ("weights.ckpt",))
    with pytest.raises(CheckpointError, match="not a weights file"):
        read_tensors(tmp_path / "weights.ckpt")


def test_a_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    def told(**files: str) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for name, content in files.items():
            laid_out(folder, (name,))
            (folder / name).write_text(content)
        return digest(folder)

    first = told(a="12", b="3")
    assert len(first) == 16 and first == told(b="3", a="12") == told(a="12", b="3", **{".cache/junk": "4"})
    others = [
        told(a="1", b="23"),
        told(a="12", c="3"),
        told(a="12"),
        told(a="12", b="4"),
        told(**{"x/a": "12", "b": "3"}),
    ]
    assert len({first, *others}) == 6


def test_a_digest_of_an_index_counts_its_shards_alone(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    before = digest(index)
    laid_out(tmp_path, ("README.md",))
    assert digest(index) == before != digest(tmp_path / PLACES["b"])
    (tmp_path / PLACES["b"]).write_bytes(b"other")
    assert digest(index) != before
    (tmp_path / PLACES["b"]).unlink()
    with pytest.raises(CheckpointError, match="a weights file is missing"):
        digest(index)


WANTED = {name: tensor.shape for name, tensor in TENSORS.items()}


def refused(found: dict[str, Tensor], wanted: dict[str, torch.Size] = WANTED) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_tensors("these weights do not fit", "x.pt", found, wanted, "take others")
    return str(caught.value)


def test_weights_that_fit_pass() -> None:
    check_tensors("no", "x.pt", dict(TENSORS), WANTED, "")
    check_tensors("no", "x.pt", {"a": torch.zeros(0)}, {"a": torch.Size([0])}, "")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("value", "told"), [(float("nan"), "1 NaN and 0 inf"), (float("-inf"), "0 NaN and 1 inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(dtype: torch.dtype, value: float, told: str) -> None:
    spoilt = torch.ones(2, 3, dtype=dtype)
    spoilt[1, 2] = value
    message = refused(TENSORS | {"a.weight": spoilt})
    assert f"not finite: a.weight ({told} of 6 numbers)" in message and "1 differences" in message


def test_a_list_of_tensors_is_bounded_and_counted_with_some_of_every_kind() -> None:
    wanted = {f"layer.{i}": torch.Size([2]) for i in range(40)}
    found = {f"layer.{i}": torch.zeros(3) for i in range(20)} | {"other": torch.zeros(1)}
    message = refused(found, wanted)
    assert "41 differences" in message and "and 36 more" in message and message.count("\n    ") == 6
    assert "missing: layer.20" in message and "unknown: other" in message and "of another shape: layer.0 " in message
    nan = {name: torch.full((2,), float("nan")) for name in wanted}
    message = refused(nan, wanted)
    assert "40 differences" in message and "and 35 more" in message and message.count("not finite: ") == 5


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.diffusion_model."])
def test_a_prefix_of_all_names_is_recognised_and_named(prefix: str) -> None:
    message = refused({f"{prefix}{name}": tensor for name, tensor in TENSORS.items()})
    assert f"all names begin with {prefix!r}" in message and "remove it from each name" in message
    assert "1 differences" in message and "missing" not in message
    missing = {f"{prefix}{name}": tensor for name, tensor in TENSORS.items() if name != "b"}
    assert "2 differences" in refused(missing) and "missing: b" in refused(missing)


def test_a_prefix_that_the_file_lacks_is_named_too() -> None:
    message = refused(dict(TENSORS), {f"dit.{name}": shape for name, shape in WANTED.items()})
    assert "no name begins with 'dit.'" in message and "1 differences" in message


def test_a_prefix_must_be_shared_by_all_names() -> None:
    assert shared_prefix(["module.a", "b"], ["a", "b"]) == ""
    assert shared_prefix(["module.a", "module.b"], ["c"]) == ""
    assert shared_prefix(["modulea", "moduleb"], ["a", "b"]) == ""
    assert shared_prefix([], ["a"]) == ""
    assert shared_prefix(["x.blocks.0.q", "x.blocks.1.q"], ["blocks.0.q", "blocks.1.q"]) == "x."


def test_quantised_weights_mean_nothing_without_their_scales() -> None:
    eight = TENSORS["a.weight"].to(torch.float8_e4m3fn)
    assert "8-bit floating point, which is quantised: a.weight float8_e4m3fn" in refused(TENSORS | {"a.weight": eight})
    assert "not of floating point: a.weight int8" in refused(TENSORS | {"a.weight": torch.ones(2, 3).to(torch.int8)})


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 10\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (POINTER, "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (bytes(100), "begins with zeros"),
        (save(TENSORS)[:-5], "was cut short"),
        (b"\x09\0\0\0\0\0\0\0[1, 2, 3]", "cannot be read as safetensors"),
    ],
    ids=["empty", "pointer", "page", "zeros", "short", "no header"],
)
def test_a_file_that_is_something_else_says_what(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors") as caught:
        read_tensors(tmp_path / "x.safetensors")
    assert told in str(caught.value) and "fetch it again" in str(caught.value)


def test_pickles_and_indices_may_be_pointers_too(tmp_path: Path) -> None:
    for name in ("x.pth", INDEX):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(CheckpointError, match="git lfs pull"):
            read_tensors(tmp_path / name)


def test_tensors_that_lie_one_level_down_are_found(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a table name -> tensor") as caught:
        read_tensors(tmp_path / "x.pt")
    assert caught.value.got == "state_dict: dict, epoch: int" and "'state_dict'" in caught.value.next_step
