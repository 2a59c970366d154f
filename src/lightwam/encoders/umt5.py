"""UMT5-XXL's encoder as in Wan2.1: transformers' UMT5EncoderModel, one sentence at a time.

A sentence is encoded alone and without padding. This gives the result of the padded and masked run over `num_tokens`
tokens for a fraction of its work, and no bit of it depends on other sentences in a batch: the states cached for
training are those that a policy gets.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from lightwam.config.schema import Umt5Config
from lightwam.encoders.tensor_check import describe_names, describe_not_finite, mismatch_error, tensor_differences
from lightwam.encoders.weight_files import locate, read_config, read_tensors
from lightwam.errors import CheckpointError, ConfigError, PromptError
from lightwam.system.devices import DEVICE_WIDE
from lightwam.system.file_damage import likely_cause

UNIT = "tokens, including the end token"
AS_PUBLISHED = "take the text encoder as it was published"
FIXED: dict[str, Any] = {
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
"""UMT5-XXL's settings that do not follow from its tensors' shapes, in transformers' words"""
TABLE, TABLE_ALIAS = "shared.weight", "encoder.embed_tokens.weight"
"""transformers' two names for the table of token embeddings"""
_BLOCK = re.compile(r"(?:encoder\.block|blocks)\.(\d+)\.")
_OFFICIAL = {
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


class Umt5Text:
    """Implements `TextEncoder`. States are float32, on the CPU.

    There the encoder's weights stay, too: its device has a copy of them only while it reads sentences that are new, so
    that a GPU's memory is the policy's.
    """

    def __init__(self, encoder: Any, tokenizer: Any, config: Umt5Config, device: torch.device | str = "cpu") -> None:
        """Wrap transformers' UMT5EncoderModel on the CPU, whose weights are frozen, and its tokenizer."""
        self.device = torch.device(device)
        self.dim, self.num_tokens, self._truncate = config.dim, config.num_tokens, config.truncate
        self.encoder, self.tokenizer = encoder.eval().requires_grad_(False), tokenizer

    @classmethod
    def load(
        cls,
        source: Path | str,
        config: Umt5Config,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> Umt5Text:
        """The text encoder of `source` (a folder, or a Hub repo id), in the official layout or in diffusers'.

        11 GB in bfloat16, as published. CheckpointError when encoder or tokenizer is not there, is another one or,
        listing them, when tensors are missing, unknown, of other shapes or not finite; ConfigError when the width is
        not `config.dim`, or transformers is not installed.
        """
        library, path = _library(), locate(source, "text_encoder")
        tokenizer = read_tokenizer(source)
        if path.is_dir():
            _check_config(path / "config.json")
        tensors = _with_one_table(read_tensors(path), path)
        sizes = _sizes(tensors, path)
        if sizes["d_model"] != config.dim:
            raise ConfigError("text.dim must be the text encoder's width", got=config.dim, expected=sizes["d_model"])
        with torch.device("meta"):
            encoder: Any = library.UMT5EncoderModel(library.UMT5Config(**sizes, **FIXED))
        wanted = {name: tensor.shape for name, tensor in encoder.state_dict().items() if name != TABLE_ALIAS}
        names = {name: name if path.is_dir() else official_name(name) for name in wanted}
        if wrong := tensor_differences(tensors, {names[name]: shape for name, shape in wanted.items()}):
            raise mismatch_error("the weights are not those of this text encoder", path, wrong, AS_PUBLISHED)
        state: dict[str, Tensor] = {}
        for ours, theirs in names.items():  # one tensor at a time: never two copies of the model, and each is read once
            tensor = tensors.pop(theirs)
            wrong += filter(None, [describe_not_finite(theirs, tensor)])
            state[ours] = tensor.to(dtype)
        if wrong:
            raise mismatch_error("the weights are not finite", path, wrong, AS_PUBLISHED)
        encoder.load_state_dict(state | {TABLE_ALIAS: state[TABLE]}, assign=True)
        encoder.encoder.embed_tokens.weight = encoder.shared.weight  # one parameter, which travels once
        return cls(encoder, tokenizer, config, device)

    def encode(self, instructions: Sequence[str]) -> Float[Tensor, "B L E"]:
        """One state a token, the end's included, zeros after it; the text is cleaned first (`cleaned`).

        An empty instruction raises PromptError, and so does one of more than num_tokens tokens, unless
        `config.truncate`: then the first num_tokens - 1 tokens and the end token are read, as Wan does.
        """
        sentences = [cleaned(instruction) for instruction in instructions]
        tokens = {sentence: self._tokens(sentence) for sentence in dict.fromkeys(sentences)}
        with self._device_weights() as weights:
            encoded = {sentence: self._states(ids, weights) for sentence, ids in tokens.items()}
        states = torch.zeros(len(sentences), self.num_tokens, self.dim)
        for row, sentence in enumerate(sentences):
            states[row, : len(encoded[sentence])] = encoded[sentence]
        return states

    def _tokens(self, sentence: str) -> list[int]:
        ids = token_ids(self.tokenizer, sentence)
        if not ids or (len(ids) > self.num_tokens and not self._truncate):
            raise PromptError(sentence, len(ids), self.num_tokens, UNIT)
        ids = ids if len(ids) <= self.num_tokens else [*ids[: self.num_tokens - 1], ids[-1]]
        if max(ids) >= (size := self.encoder.config.vocab_size):
            what, step = f"the tokenizer must have the encoder's {size} tokens", "take both from one source"
            raise CheckpointError(what, where=repr(sentence), got=f"token {max(ids)}", next_step=step)
        return ids

    @contextmanager
    def _device_weights(self) -> Iterator[dict[str, Tensor]]:
        """Yield copies of the weights on the device, which are dropped after the `with` block; none for a CPU."""
        if self.device.type == "cpu":
            yield {}
            return
        tensors = chain(self.encoder.named_parameters(), self.encoder.named_buffers())
        weights = {name: tensor.detach().to(self.device) for name, tensor in tensors}
        try:
            yield weights
        finally:
            weights.clear()
            if self.device.type == "cuda":
                with DEVICE_WIDE:
                    torch.cuda.empty_cache()  # simulators may draw on this GPU

    @torch.no_grad()
    def _states(self, ids: list[int], weights: dict[str, Tensor]) -> Float[Tensor, "n E"]:
        row = torch.tensor([ids], device=self.device)
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        states: Tensor = functional_call(self.encoder, weights, (), inputs).last_hidden_state
        return states[0].cpu()


def token_ids(tokenizer: Any, sentence: str) -> list[int]:
    """Tokenize a cleaned sentence, with the end token; [] for no text."""
    ids: list[int] = tokenizer(sentence, truncation=False, padding=False).input_ids if sentence else []
    return ids


def cleaned(text: str) -> str:
    """Text as Wan cleans prompts: HTML's escapes undone, twice, and white space collapsed to single spaces.

    Wan also has the ftfy package repair wrongly decoded and typographic characters; they are left as they are here. In
    plain ASCII that makes no difference.
    """
    return " ".join(html.unescape(html.unescape(text)).split())


def official_name(name: str) -> str:
    """Return the official file's name of a tensor that transformers' UMT5EncoderModel calls `name`."""
    if name in (TABLE, TABLE_ALIAS):
        return "token_embedding.weight"
    block, layer = _BLOCK.match(name), name.removesuffix(".weight")
    if block is None:
        return {"encoder.final_layer_norm": "norm"}[layer] + ".weight"
    return f"blocks.{block[1]}.{_OFFICIAL[layer[block.end() :]]}.weight"


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        what, step = "a package that UMT5 needs is not installed", "pip install 'lightwam[wan]'"
        raise ConfigError(what, where="text", got=f"transformers ({error})", next_step=step) from error
    return transformers


def read_tokenizer(source: Path | str) -> Any:
    """Load only the tokenizer of `source`; raises as `Umt5Text.load`."""
    library, path = _library(), locate(source, "tokenizer")
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # a torn file raises anything, by the kind of tokenizer
        got = likely_cause(path / "tokenizer.json") or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        step = "copy tokenizer.json and tokenizer_config.json again"
        raise CheckpointError("the tokenizer cannot be read", where=path, got=got, next_step=step) from error
    if (ids := tokenizer("a").input_ids)[-1:] != [tokenizer.eos_token_id]:
        got, expected = f"tokens {ids} for 'a'", f"UMT5's, whose last is {tokenizer.eos_token_id}"
        raise CheckpointError("the tokenizer does not mark the end of a text", where=path, got=got, expected=expected)
    return tokenizer


def _check_config(path: Path) -> None:
    """Raise CheckpointError when transformers' config contradicts `FIXED`."""
    config, wanted = read_config(path, "the text encoder's config"), {"model_type": "umt5"} | FIXED
    if (got := {key: config.get(key) for key in wanted}) != wanted:
        raise CheckpointError("not the config of UMT5-XXL", where=path, got=got, expected=wanted)


def _with_one_table(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Replace transformers' second name for the embeddings, which a file may have as well, or instead."""
    if TABLE_ALIAS not in tensors:
        return tensors
    if TABLE in tensors and not torch.equal(tensors[TABLE], tensors[TABLE_ALIAS]):
        got = f"{TABLE} and {TABLE_ALIAS}, which differ"
        raise CheckpointError("the text encoder has two tables of embeddings", where=path, got=got)
    return {TABLE if name == TABLE_ALIAS else name: tensor for name, tensor in tensors.items()}


def _sizes(tensors: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """Return UMT5's sizes, in transformers' words, from the shapes of the first block."""
    layers = ("0.SelfAttention.q", "0.SelfAttention.relative_attention_bias", "1.DenseReluDense.wi_0")
    wanted = (TABLE, *(f"encoder.block.0.layer.{layer}.weight" for layer in layers))
    names = wanted if path.is_dir() else tuple(map(official_name, wanted))
    if any(name not in tensors or tensors[name].ndim != 2 or 0 in tensors[name].shape for name in names):
        got, expected = describe_names(tensors, names), f"matrices {', '.join(names)}"
        raise CheckpointError("not the weights of UMT5", where=path, got=got, expected=expected, next_step=AS_PUBLISHED)
    table, q, positions, gate = (tensors[name].shape for name in names)
    blocks = [int(match[1]) for match in map(_BLOCK.match, tensors) if match]
    return {
        "vocab_size": table[0],
        "d_model": table[1],
        "d_kv": q[0] // positions[1],
        "d_ff": gate[0],
        "num_layers": 1 + max(blocks),
        "num_heads": positions[1],
    }
