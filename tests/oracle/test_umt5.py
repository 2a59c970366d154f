"""encoders/umt5.py against transformers: trimmed states are those of the padded run, the official file by its names."""

import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from lightwam.config import recipe_files
from lightwam.config.schema import Umt5Config
from lightwam.encoders import umt5
from lightwam.encoders.prompt_check import check_prompts
from lightwam.encoders.umt5 import Umt5Text, cleaned, official_name
from lightwam.errors import CheckpointError, ConfigError, PromptError
from lightwam.types import TextEncoder

CONFIG = Umt5Config(num_tokens=12, dim=24)
WORDS = ("open", "close", "the", "red", "drawer", "window", "and", "then", "a")
PROMPTS = ["open the drawer", "close the window and then open the red drawer", "a"]


def save_tokenizer(folder: Path, *, end: bool = True) -> None:
    """Words and letters, in the manner of UMT5's: <pad> 0, </s> 1, <unk> 2, an end added to every text."""
    folder.mkdir(parents=True)
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | names))


def random_encoder(vocab_size: int = 48) -> Any:
    """Three blocks with every tensor random, position tables and gains too, at a scale where they show."""
    torch.manual_seed(0)
    sizes = {"d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 3, "num_heads": 4}
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=vocab_size, **sizes)).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (1 if parameter.ndim == 1 or "bias" in name else 0.2))
            parameter += float(parameter.ndim == 1)
    return encoder


def save_diffusers(encoder: Any, folder: Path) -> Path:
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    save_tokenizer(folder / "tokenizer")
    return folder / "text_encoder"


def save_official(encoder: Any, folder: Path) -> Path:
    path = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save({official_name(name): tensor.clone() for name, tensor in encoder.state_dict().items()}, path)
    save_tokenizer(folder / "google" / "umt5-xxl")
    return path


def padded_run(encoder: Any, folder: Path, prompts: list[str]) -> Tensor:
    """What the publication does: padded to num_tokens, masked, the padding's states set to zero."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    given = tokenizer(prompts, padding="max_length", max_length=CONFIG.num_tokens, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(input_ids=given.input_ids, attention_mask=given.attention_mask).last_hidden_state
    return states * given.attention_mask[..., None]


@pytest.fixture(scope="module")
def encoder() -> Any:
    return random_encoder()


@pytest.fixture(scope="module")
def diffusers_folder(encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    save_diffusers(encoder, folder)
    return folder


def load(folder: Path, config: Umt5Config = CONFIG) -> Umt5Text:
    return Umt5Text.load(folder, config, dtype=torch.float32)


@pytest.fixture
def text(diffusers_folder: Path) -> Umt5Text:
    return load(diffusers_folder)


def test_states_equal_those_of_a_padded_and_masked_run(text: Umt5Text, encoder: Any, diffusers_folder: Path) -> None:
    assert len(list((diffusers_folder / "text_encoder").glob("*.safetensors"))) > 1  # it was read from shards
    theirs = padded_run(encoder, diffusers_folder / "tokenizer", PROMPTS)
    ours = text.encode(PROMPTS)
    assert ours.shape == (3, 12, 24)
    assert ours.dtype == torch.float32
    assert not ours.requires_grad
    assert theirs[0, :4].std() > 0.3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_padding_is_exactly_zero_and_the_end_is_a_token(text: Umt5Text) -> None:
    states = text.encode(PROMPTS)
    for row, count in zip(states, (4, 10, 2), strict=True):
        assert (row[count:] == 0).all()
        assert (row[:count].abs().sum(1) > 0).all()


def test_word_order_matters(text: Umt5Text) -> None:
    one, other = text.encode(["open the window and then close the drawer", "close the window and then open the drawer"])
    assert (one[-3] - other[-3]).abs().max() < 1e-6
    assert (one[4] - other[4]).abs().max() > 1e-2


def test_a_sentence_does_not_depend_on_its_neighbours(diffusers_folder: Path) -> None:
    alone = load(diffusers_folder).encode([PROMPTS[0]])
    together = load(diffusers_folder).encode([PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[0]])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[3:4], alone)


def test_the_official_file_gives_the_same(text: Umt5Text, encoder: Any, tmp_path: Path) -> None:
    save_official(encoder, tmp_path)
    assert torch.equal(load(tmp_path).encode(PROMPTS), text.encode(PROMPTS))


def test_the_official_names(encoder: Any) -> None:
    """As Wan's own T5 has them, written out."""
    of_a_block = (
        "norm1",
        *("attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding"),
        *("norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"),
    )
    names = {f"blocks.{i}.{layer}.weight" for i in range(3) for layer in of_a_block}
    state = encoder.state_dict()
    assert {official_name(name) for name in state} == names | {"token_embedding.weight", "norm.weight"}
    # the gate is what goes through the GELU, and fc2 leads back
    assert official_name("encoder.block.2.layer.1.DenseReluDense.wi_0.weight") == "blocks.2.ffn.gate.0.weight"
    assert state["encoder.block.2.layer.1.DenseReluDense.wo.weight"].shape == (24, 40)
    assert official_name("encoder.block.2.layer.1.DenseReluDense.wo.weight") == "blocks.2.ffn.fc2.weight"


def test_the_default_dtype_is_that_of_the_publication(diffusers_folder: Path, text: Umt5Text) -> None:
    half = Umt5Text.load(diffusers_folder, CONFIG)
    assert {p.dtype for p in half.encoder.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad or p.is_meta for p in half.encoder.parameters())
    states = half.encode(PROMPTS)
    assert states.dtype == torch.float32
    assert 0 < (states - text.encode(PROMPTS)).abs().mean() < 0.05


def test_the_table_of_embeddings_is_held_once(text: Umt5Text) -> None:
    state = text.encoder.state_dict()
    assert state[umt5.TABLE].data_ptr() == state[umt5.TABLE_ALIAS].data_ptr()
    state = text.encoder.double().state_dict()  # as it travels to a device
    assert state[umt5.TABLE].data_ptr() == state[umt5.TABLE_ALIAS].data_ptr()


def test_the_device_has_copies_of_the_weights_only_while_sentences_are_read(
    text: Umt5Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On "meta", which computes nothing, so the states are replaced. The CPU's weights stay where they are."""
    weights = [*text.encoder.parameters(), *text.encoder.buffers()]
    before, copies, alive = [weight.data_ptr() for weight in weights], [], [0]

    def states(ids: list[int], weights: dict[str, Tensor]) -> Tensor:
        assert {weight.device.type for weight in weights.values()} == {"meta"}
        copies.extend(weakref.ref(weight) for weight in weights.values())
        alive[0] = sum(copy() is not None for copy in copies)
        if ids == fails_at:
            raise RuntimeError("out of memory")
        return torch.zeros(len(ids), CONFIG.dim)

    expected, fails_at = text.encode(PROMPTS[:1]), text._tokens(PROMPTS[2])
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(text, "device", torch.device("meta"))
        patch.setattr(text, "_states", states)
        assert text.encode([PROMPTS[0], PROMPTS[1]]).device.type == "cpu"
        with pytest.raises(RuntimeError, match="out of memory"):
            text.encode([PROMPTS[2]])
    assert alive == [len(weights)] and not any(copy() is not None for copy in copies)
    assert [weight.data_ptr() for weight in weights] == before
    assert torch.equal(text.encode(PROMPTS[:1]), expected)


def test_copied_weights_give_the_same_states(text: Umt5Text) -> None:
    weights = {name: tensor.clone() for name, tensor in text.encoder.named_parameters()}
    ids = text._tokens(PROMPTS[0])
    expected = text._states(ids, {})
    assert torch.equal(text._states(ids, weights), expected)
    assert not torch.allclose(text._states(ids, {name: 1.1 * tensor for name, tensor in weights.items()}), expected)


@pytest.mark.gpu
def test_a_gpu_is_left_after_use(text: Umt5Text, diffusers_folder: Path) -> None:
    visitor, allocated = Umt5Text.load(diffusers_folder, CONFIG, "cuda", torch.float32), []
    for _ in range(3):
        torch.testing.assert_close(visitor.encode(PROMPTS), text.encode(PROMPTS), rtol=0, atol=1e-4)
        allocated.append(torch.cuda.memory_allocated())
    assert {weight.device.type for weight in visitor.encoder.parameters()} == {"cpu"}
    assert allocated[1] == allocated[2]  # the first time leaves cuBLAS's work space


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("  open \n\t the  drawer ", "open the drawer"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("&lt;b&gt;&nbsp;red", "<b> red"),
    ],
)
def test_text_is_cleaned_as_wan_does(given: str, wanted: str) -> None:
    assert cleaned(given) == wanted


def test_equal_sentences_of_a_batch_are_encoded_once(text: Umt5Text) -> None:
    """Also those that only differ before they are cleaned."""
    calls: list[int] = []
    text.encoder.register_forward_hook(lambda *_: calls.append(1))
    first, other, second, again = text.encode(["open the drawer", PROMPTS[1], "  open   the\ndrawer", PROMPTS[1]])
    assert torch.equal(first, second) and torch.equal(other, again)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("num_tokens", "instruction", "says"),
    [
        (12, "open the red drawer and then close the red window and then", "13 tokens"),
        (3, "open the drawer", "4 tokens"),
        (12, "  ", "0 tokens"),
        (12, "", "0 tokens"),
    ],
)
def test_too_long_or_empty_is_refused_with_its_length(
    num_tokens: int, instruction: str, says: str, diffusers_folder: Path
) -> None:
    text = load(diffusers_folder, Umt5Config(num_tokens=num_tokens, dim=24))
    calls: list[int] = []
    text.encoder.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ConfigError, match=says) as caught:
        text.encode(["a", instruction])
    assert repr(instruction.strip()) in str(caught.value)
    assert not calls  # refused before anything is encoded


def test_a_longer_sentence_is_truncated_as_the_publication_does(encoder: Any, diffusers_folder: Path) -> None:
    """The end token stays; and lengths are known of the tokenizer alone, without the weights."""
    long = "open the red drawer and then close the red window and then"
    text = load(diffusers_folder, replace(CONFIG, truncate=True))
    theirs = padded_run(encoder, diffusers_folder / "tokenizer", [long])
    torch.testing.assert_close(text.encode([long]), theirs, atol=1e-5, rtol=0)
    with pytest.raises(PromptError, match="0 tokens"):
        text.encode([" "])


def test_sentences_are_counted_by_the_tokenizer_alone(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tokenizer")
    recipe = replace(recipe_files.recipe("point"), text=CONFIG, weights=str(tmp_path))
    check_prompts(recipe, PROMPTS)
    for sentence, says in (("&nbsp; ", "0 tokens"), ("open the red drawer and then close the red window and", "12")):
        with pytest.raises(PromptError, match=says):
            check_prompts(replace(recipe, text=replace(CONFIG, num_tokens=11)), [sentence])
    told: list[str] = []
    check_prompts(replace(recipe, text=Umt5Config(4, 24, truncate=True)), PROMPTS, told.append)
    assert len(told) == 1 and "has 10 tokens" in told[0] and "only the first 4 are read" in told[0]


def test_a_sentence_that_just_fits_is_taken(diffusers_folder: Path) -> None:
    states = load(diffusers_folder, Umt5Config(num_tokens=4, dim=24)).encode(["open the drawer"])
    assert (states[0, 3] != 0).any()


def test_another_width_is_refused(diffusers_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"text\.dim"):
        load(diffusers_folder, Umt5Config(num_tokens=12, dim=32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("blocks.1.attn.o.weight"), r"1 differences\n    missing: blocks.1.attn.o.weight"),
        (lambda s: s.update({"blocks.1.attn.more": torch.zeros(1)}), r"unknown: blocks.1.attn.more"),
        (lambda s: s.update({"norm.weight": torch.ones(7)}), r"of another shape: norm.weight \[7\], expected \[24\]"),
        (lambda s: s.update({"blocks.0.pos_embedding.embedding.weight": torch.ones(16, 4)}), r"\[16, 4\]"),
        (lambda s: s.update({"norm.weight": torch.ones(24).int()}), "not of floating point: norm.weight"),
        (
            lambda s: s["norm.weight"][:1].fill_(float("inf")),
            r"not finite: norm.weight \(0 NaN and 1",
        ),
        (lambda s: [s.update({f"module.{k}": s.pop(k)}) for k in list(s)], "begin with 'module.'"),
        (lambda s: s.pop("token_embedding.weight"), "not the weights of UMT5"),
        (lambda s: s.update({"blocks.0.attn.q.weight": torch.ones(7)}), "not the weights of UMT5"),
        (lambda s: s.clear(), "not the weights of UMT5"),
    ],
)
def test_another_official_file_is_refused(
    change: Callable[[dict[str, Tensor]], Any], says: str, encoder: Any, tmp_path: Path
) -> None:
    path = save_official(encoder, tmp_path)
    state = torch.load(path)
    change(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=says) as caught:
        load(tmp_path)
    assert path.name in str(caught.value)


def resaved(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """The folder's tensors, changed, in one file in place of its shards."""
    state: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors*"):
        if path.suffix == ".safetensors":
            state |= load_file(path)
        path.unlink()
    change(state)
    save_file(state, folder / "model.safetensors")


def test_either_name_of_the_embeddings_or_both_will_do(encoder: Any, text: Umt5Text, tmp_path: Path) -> None:
    folder, wanted = save_diffusers(encoder, tmp_path), text.encode(PROMPTS)
    resaved(
        folder, lambda s: s.update({umt5.TABLE: encoder.shared.weight.clone(), umt5.TABLE_ALIAS: encoder.shared.weight})
    )
    assert torch.equal(load(tmp_path).encode(PROMPTS), wanted)
    resaved(folder, lambda s: s.pop(umt5.TABLE))
    assert torch.equal(load(tmp_path).encode(PROMPTS), wanted)
    resaved(folder, lambda s: s.update({umt5.TABLE: encoder.shared.weight + 1}))
    with pytest.raises(CheckpointError, match="two tables"):
        load(tmp_path)


def test_a_folder_without_one_of_its_tensors_is_refused(encoder: Any, tmp_path: Path) -> None:
    name = "encoder.block.1.layer.1.DenseReluDense.wi_1.weight"
    resaved(save_diffusers(encoder, tmp_path), lambda s: s.pop(name))
    with pytest.raises(CheckpointError, match=f"1 differences\n    missing: {name}"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"model_type": "t5"}, {"feed_forward_proj": "relu"}, {"relative_attention_max_distance": 64}, None, "{"]
)
def test_another_config_is_refused(change: Any, encoder: Any, tmp_path: Path) -> None:
    path = save_diffusers(encoder, tmp_path) / "config.json"
    path.write_text(change if isinstance(change, str) else json.dumps(change and json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="config") as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", '{"model": {}}'])
def test_an_invalid_tokenizer_is_refused(content: str | None, encoder: Any, tmp_path: Path) -> None:
    save_diffusers(encoder, tmp_path)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer cannot be read") as caught:
        load(tmp_path)
    assert str(path.parent) in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "text_encoder")
    save_tokenizer(tmp_path / "tokenizer", end=False)
    with pytest.raises(CheckpointError, match="end of a text"):
        load(tmp_path)


def test_a_tokenizer_of_another_encoder_is_refused(tmp_path: Path) -> None:
    save_diffusers(random_encoder(vocab_size=8), tmp_path)
    text = load(tmp_path)
    text.encode(["open the red"])
    with pytest.raises(CheckpointError, match=r"token 8\n"):
        text.encode(["open the window"])


@pytest.mark.parametrize("missing", ["text_encoder", "tokenizer"])
def test_a_part_that_is_not_there_is_named(missing: str, encoder: Any, tmp_path: Path) -> None:
    save_diffusers(encoder, tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"there is no {missing}"):
        load(tmp_path)


def test_without_transformers_the_extra_is_named(diffusers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightwam\[wan\]'"):
        load(diffusers_folder)


def test_the_encoder_is_a_text_encoder(text: Umt5Text) -> None:
    assert isinstance(text, TextEncoder)
