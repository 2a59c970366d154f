"""The engine: folded weights, updates that rounding would swallow, kept sentences, and a policy's use of it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import Same, canvas_of, inputs_of, model_of
from torch import Tensor, nn

from lightwam.engine import engine as engines
from lightwam.engine import folding
from lightwam.engine.engine import Engine
from lightwam.engine.folded_model import FoldedWAM, padding_bias
from lightwam.engine.folding import Folded, Int8, Packed, Placement, fold, stack, tensors
from lightwam.errors import ConfigError, WireError
from lightwam.model.lora import LoRA, linear_with_lora
from lightwam.policy.policy import Policy
from lightwam.sim import registry
from lightwam.system import cpu
from lightwam.training.caches import DatasetSource
from lightwam.training.train import train
from lightwam.types import to_pixels

SINGLE, HALF = (Placement(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16))


def acted(folded: FoldedWAM, latent: Tensor, context: Tensor, state: Tensor) -> Tensor:
    return folded.act(latent, folded.batch_prompts([folded.encode_prompt(one) for one in context]), state)


def test_folded_model_equals_the_plain_model_in_float32() -> None:
    model, given = model_of(), inputs_of()
    with torch.no_grad():
        torch.testing.assert_close(acted(FoldedWAM(model, SINGLE), *given), model.act(*given), rtol=0, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("place", [SINGLE, HALF, SINGLE._replace(int8=True)], ids=["float32", "bfloat16", "int8"])
def test_a_model_with_foresight(place: Placement) -> None:
    """At the sizes of the plain one's tests, where bfloat16 and 8 bits round; in float64: test_folded_model.py."""
    model, given = model_of(foresight=2), inputs_of()
    expected, without = model.act(*given), model_of().act(*given)
    limit = 2e-6 if place == SINGLE else 0.3 * float(expected.std())
    assert float((acted(FoldedWAM(model, place), *given) - expected).abs().max()) < limit
    assert float((expected - without).abs().max()) > 0.01 * float(expected.std())


def test_packed_weights_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What large layers on a CPU are: `PACKED_FROM` lowered to these sizes."""
    model, given = model_of(), inputs_of()
    plain = FoldedWAM(model, SINGLE)
    monkeypatch.setattr(folding, "PACKED_FROM", 1)
    packed = FoldedWAM(model, SINGLE)
    assert type(packed.blocks[0].qkv) is Packed and type(plain.blocks[0].qkv) is Folded
    assert len(tensors(packed)) == len(tensors(plain))
    torch.testing.assert_close(acted(packed, *given), acted(plain, *given), rtol=0, atol=2e-6)


@pytest.fixture
def weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 8 bits, as on CPUs without units for products of 8-bit integers."""
    monkeypatch.setattr(cpu, "has_int8_products", lambda: False)
    monkeypatch.setattr(folding, "INT8_FROM", 1)


@pytest.mark.usefixtures("weights_alone")
def test_int8_weights_are_close_and_small() -> None:
    model, given = model_of(), inputs_of()
    whole, exact = FoldedWAM(model, SINGLE._replace(int8=True)), FoldedWAM(model, SINGLE)
    with torch.no_grad():
        expected = model.act(*given)
    assert 1e-4 < float((acted(whole, *given) - expected).square().mean().sqrt()) < 0.1 * float(expected.std())
    assert type(whole.blocks[0].qkv) is Int8 and whole.blocks[0].qkv.weight.dtype == torch.int8
    sizes = [sum(t.numel() * t.element_size() for t in tensors(one.blocks[0])) for one in (whole, exact)]
    assert sizes[0] < 0.4 * sizes[1]
    half = acted(FoldedWAM(model, HALF._replace(int8=True)), *given)
    assert half.dtype == torch.bfloat16 and float((half - expected).abs().max()) < 0.3 * float(expected.std())


def test_int8_rounds_to_the_nearest_with_a_scale_a_row() -> None:
    weight = torch.randn(20, 30) * torch.logspace(-6, 3, 20)[:, None]
    weight[3] = 0
    whole, scale = folding.to_int8(weight)
    assert whole.abs().amax(dim=1).tolist() == [0 if row == 3 else 127 for row in range(20)]
    assert ((whole * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


@torch.no_grad()
@pytest.mark.usefixtures("weights_alone")
def test_lora_update_lost_by_int8_rounding_is_kept_unmerged() -> None:
    """Where all of an update is under half a step of its row, rounding takes it away."""
    layer, lora = nn.Linear(40, 40), LoRA(40, 40, 2, 2.0)
    layer.weight.data = torch.randint(-127, 128, (40, 40)).float()
    layer.weight.data[:, 0] = 127
    for size, apart in ((0.01, True), (3.0, False)):
        lora.up.weight.data.normal_()
        lora.up.weight.data *= size / lora.update().abs().mean()
        folded = fold([(layer, lora)], SINGLE._replace(int8=True))
        assert (folded.down is not None) == apart
        x = torch.randn(9, 40)
        moved = linear_with_lora(layer, lora, x) - layer(x)
        assert 0.9 < float(((folded(x) - layer(x)) * moved).sum() / moved.square().sum()) < 1.1


def test_bfloat16_on_a_cpu_without_units_becomes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(cpu, "has_bfloat16", lambda has=has: has)
        engine = Engine(model_of(), Same(), lambda sentences: torch.ones(1, 6, 10), torch.device("cpu"), torch.bfloat16)
        assert engine.folded.placement.dtype == dtype


def test_folded_bfloat16_is_as_accurate_as_the_plain_model() -> None:
    errors: dict[str, list[float]] = {"plain": [], "engine": []}
    for seed in range(12):
        model, given = model_of(seed, 0.05), inputs_of(4, seed)
        with torch.no_grad():
            exact = model.act(*given)
            ours = acted(FoldedWAM(model, HALF), *given)
            theirs = model.bfloat16().act(*given)
        errors["plain"].append(float((theirs - exact).square().mean()))
        errors["engine"].append(float((ours - exact).square().mean()))
    plain, engine = (np.sqrt(np.mean(errors[name])) for name in ("plain", "engine"))
    assert plain > 1e-3, "this is about rounding"
    assert engine < 1.1 * plain


def test_folding_does_not_change_the_model() -> None:
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    acted(FoldedWAM(model, HALF), *inputs_of())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_folding_keeps_only_what_acting_needs() -> None:
    """Blocks after the last tap, the head and the text path's copies are left behind; nothing is trainable."""
    model = model_of()
    kept = tensors(FoldedWAM(model, SINGLE))
    assert not any(tensor.requires_grad for tensor in kept)
    size = sum(tensor.numel() for tensor in kept)
    assert size > 0.5 * sum(p.numel() for p in model.dit.blocks[:4].parameters())
    assert size < sum(p.numel() for name, p in model.named_parameters() if ".4." not in name)


def linear_of(width: int, update: float) -> tuple[nn.Linear, LoRA]:
    torch.manual_seed(3)
    layer, lora = nn.Linear(width, width), LoRA(width, width, 2, 2.0)
    layer.weight.data = torch.randn(width, width).bfloat16().float()
    lora.up.weight.data.normal_()
    lora.up.weight.data *= update * layer.weight.data.norm() / lora.update().norm()
    return layer.requires_grad_(False), lora.requires_grad_(False)


def widened(folded: Folded) -> Folded:
    return type(folded)(
        *(None if x is None else x.float() for x in (folded.weight, folded.bias, folded.down, folded.up))
    )


@pytest.mark.parametrize(("update", "apart"), [(0.0, False), (1e-4, True), (1e-3, True), (1e-2, False)])
def test_lora_update_lost_by_rounding_is_kept_unmerged(update: float, apart: bool) -> None:
    layer, lora = linear_of(96, update)
    folded = fold([(layer, lora)], HALF)
    assert (folded.down is not None) == apart
    x = torch.randn(50, 96)
    moved = linear_with_lora(layer, lora, x) - layer(x)
    ours = widened(folded)(x) - layer(x)
    if update:
        assert 0.93 < float((ours * moved).sum() / moved.square().sum()) < 1.07


def test_stack_of_merged_and_unmerged_updates() -> None:
    pairs = [linear_of(24, 1e-4), linear_of(24, 0.1), linear_of(24, 0.0)]
    made = stack([fold([pair], HALF) for pair in pairs])
    assert made.down is not None
    x = torch.randn(5, 24)
    for layer, ours in zip(pairs, widened(made)(x), strict=True):
        torch.testing.assert_close(ours, linear_with_lora(*layer, x), rtol=0.02, atol=0.05)


def test_fold_of_several_layers_with_scale_shift_and_gate() -> None:
    (one, lora), two, gate, scale, shift = (
        linear_of(24, 0.1),
        nn.Linear(24, 24),
        *torch.randn(48 + 24 + 24).split((48, 24, 24)),
    )
    x = torch.randn(5, 24)
    seen = x * scale + shift
    expected = gate * torch.cat((linear_with_lora(one, lora, seen), two(seen)), dim=1)
    folded = fold([(one, lora), (two, None)], SINGLE, scale=scale, shift=shift, gate=gate)
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-5)


def counted() -> tuple[Engine, list[str]]:
    """An engine, and the sentences that it had encoded."""
    asked: list[str] = []

    def states(sentences: Any) -> Tensor:
        asked.extend(sentences)
        torch.manual_seed(len(sentences[0]))
        rows = torch.randn(1, 6, 10)
        rows[:, len(sentences[0]) :] = 0
        return rows

    return Engine(model_of(), Same(), states, torch.device("cpu"), torch.float32), asked


def test_a_sentence_is_encoded_once() -> None:
    engine, asked = counted()
    canvas, (_, _, state) = canvas_of(2), inputs_of(2)
    first = engine.act(canvas, ["ab", "abcd"], state)
    again = engine.act(canvas, ["abcd", "ab"], state.flip(0))
    assert asked == ["ab", "abcd"]
    assert not torch.allclose(first, again)
    torch.testing.assert_close(engine.act(canvas, ["ab", "abcd"], state), first, rtol=0, atol=0)
    # rows do not touch one another, whatever the others' prompts
    torch.testing.assert_close(engine.act(canvas[:1], ["ab"], state[:1]), first[:1], rtol=0, atol=1e-6)


def test_the_least_recently_used_sentence_is_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "MAX_SENTENCES", 2)
    engine, asked = counted()
    canvas, (_, _, state) = canvas_of(1), inputs_of(1)
    for sentence in ("a", "ab", "a", "abc", "a", "ab"):
        engine.act(canvas, [sentence], state)
    assert asked == ["a", "ab", "abc", "ab"]


def test_a_run_with_foresight_and_state_is_trained_saved_and_acts(tiny_once: Any, tmp_path: Path) -> None:
    expert = tiny_once.recipe.model.expert
    recipe = replace(
        tiny_once.recipe,
        model=replace(tiny_once.recipe.model, foresight=1, expert=replace(expert, state_frequencies=4)),
        train=replace(tiny_once.recipe.train, steps=2),
    )
    train(recipe, DatasetSource(tiny_once.dataset, cache=tiny_once.dataset), tmp_path / "run", say=lambda line: None)
    plain, fast = Policy.load(tmp_path / "run"), Policy.load(tmp_path / "run", engine=True)
    assert plain.recipe.model.foresight == plain.model.config.foresight == 1
    assert plain.model.expert.state_reader is not None and plain.model.expert.state_reader.proj.weight.any()
    simulator = registry.make_simulator(recipe.sim, "red")
    simulator.reset(0)
    seen = simulator.observe()
    np.testing.assert_allclose(fast.act(seen), plain.act(seen), rtol=0, atol=5e-6)
    maps = plain.attention(seen)
    assert maps[0].shape == (4, 2, 2), "of the picture alone"
    np.testing.assert_allclose(maps[0].sum((1, 2)), 1, atol=1e-5)


def test_policy_with_engine_acts_the_same(tiny_once: Any) -> None:
    plain, fast = Policy.load(tiny_once.run), Policy.load(tiny_once.run, engine=True)
    seen = []
    for seed, task in enumerate(("red", "blue")):
        simulator = registry.make_simulator(tiny_once.recipe.sim, task)
        simulator.reset(seed)
        seen.append(simulator.observe())
    np.testing.assert_allclose(fast.act_batch(seen), plain.act_batch(seen), rtol=0, atol=5e-6)
    np.testing.assert_allclose(fast.act(seen[1]), plain.act(seen[1]), rtol=0, atol=5e-6)
    assert fast.computes == plain.computes + ", by the engine"
    with pytest.raises(WireError, match="state"):
        fast.act(replace(seen[0], state=np.full(2, np.nan, np.float32)))
    with pytest.raises(ConfigError, match="acting alone"):
        fast.imagine(seen[0], seed=0, num_steps=1)
    assert "8 bits" in Policy.load(tiny_once.run, engine=True, int8=True).computes
    assert Policy.load(tiny_once.run, device="cpu", precision="bfloat16").computes == "bfloat16 on cpu"
    with pytest.raises(ConfigError, match="only the engine"):
        Policy.load(tiny_once.run, int8=True)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 3e-4), (torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_keys_for_the_padding_weigh_as_much_as_all_of_it(dtype: torch.dtype, most: float) -> None:
    for count in range(513):
        bias = padding_bias(count, dtype)
        assert bias.dtype == dtype and len(bias) <= (2 if dtype == torch.bfloat16 else 1)
        assert float(bias.double().exp().sum()) == pytest.approx(count, rel=most)


@pytest.mark.gpu
def test_policy_with_engine_on_a_gpu_uses_a_graph(tiny_once: Any) -> None:
    """From pixels on, latents included."""
    load = partial(Policy.load, tiny_once.run, device="cuda", precision="float32")
    plain, fast = load(), load(engine=True)
    simulator = registry.make_simulator(tiny_once.recipe.sim, "red")
    for seed in range(3):
        simulator.reset(seed)
        seen = simulator.observe()
        np.testing.assert_allclose(fast.act(seen), plain.act(seen), rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_a_graph_replays_what_was_captured() -> None:
    model, (_, context, _) = model_of(), inputs_of(1)
    device = torch.device("cuda")
    engine = Engine(model, Same(), lambda sentences: context, device, torch.float32)
    for seed in range(3):
        canvas, (_, _, state) = canvas_of(1, seed), inputs_of(1, seed)
        with torch.no_grad():
            expected = model.act(to_pixels(canvas[:, None]), context, state)
        torch.testing.assert_close(engine.act(canvas, ["x"], state).cpu(), expected, rtol=0, atol=1e-5)
