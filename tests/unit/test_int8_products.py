"""Products of 8-bit integers, and what else the engine does on CPUs with units for them or for bfloat16."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from small_model import Same, inputs_of, model_of
from torch import Tensor

from lightwam.engine import engine as engines
from lightwam.engine import folding
from lightwam.engine.engine import Engine
from lightwam.engine.folded_model import FoldedWAM
from lightwam.engine.folding import Folded, Int8, Int8Product, Packed, Placement, make_linear, round_tokens
from lightwam.model.layers import gelu
from lightwam.system import cpu
from lightwam.types import LatentCodec

CPU = torch.device("cpu")
SINGLE = Placement(CPU, torch.float32)
units = pytest.mark.skipif(not cpu.has_int8_products(), reason="this CPU has no units for products of 8-bit integers")
bfloat16_units = pytest.mark.skipif(not cpu.has_bfloat16(), reason="this CPU has no units for bfloat16")


@pytest.fixture
def looked_up_again() -> Iterator[None]:
    """What is known of this CPU is forgotten before and after."""
    cpu.has_int8_products.cache_clear()
    yield
    cpu.has_int8_products.cache_clear()


def integers(*shape: int, signed: bool) -> Tensor:
    low, high, dtype = (-127, 128, torch.int8) if signed else (0, 256, torch.uint8)
    return torch.randint(low, high, shape, dtype=dtype)


@units
@pytest.mark.parametrize(("rows", "columns", "outputs"), [(1, 64, 16), (5, 33, 7), (40, 200, 130)])
def test_products_of_integers_are_exact(rows: int, columns: int, outputs: int) -> None:
    torch.manual_seed(0)
    x, weight = integers(rows, columns, signed=False), integers(outputs, columns, signed=True)
    scale = 2.0 ** torch.randint(-3, 4, (outputs,))
    expected = (x.long() - 128) @ weight.long().t() * scale
    assert torch.equal(cpu.int8_product(x, cpu.pack_int8(weight), scale, torch.float32), expected.float())
    rounded = cpu.int8_product(x, cpu.pack_int8(weight), scale, torch.bfloat16)
    torch.testing.assert_close(rounded, expected.bfloat16(), rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_rounded_to_the_nearest_with_a_scale_each(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(400, 50) * torch.logspace(-6, 6, 400)[:, None]).to(dtype)
    x[3] = 0
    rounded, scale = round_tokens(x)
    assert rounded.dtype == torch.uint8 and scale.shape == (400, 1)
    whole = rounded.float() - 128
    largest = whole.abs().amax(dim=1)
    assert largest[3] == 0 and largest.max() <= 127 and (largest >= 125).sum() == 399
    assert ((whole > 0) == (x > 0))[whole != 0].all()
    step = scale.float()  # in bfloat16 the quotients are rounded to halves, and the scale by up to 1/256
    most = 0.501 if dtype == torch.float32 else 1.26
    assert ((whole * step - x.float()).abs() <= most * step).all()


@units
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_its_integers_product(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    placement = Placement(CPU, dtype, int8=True)
    weight, bias, x = torch.randn(30, 40), torch.randn(30).to(dtype), torch.randn(2, 5, 40).to(dtype)
    layer = make_linear(placement, weight, bias, plain=False)
    assert type(layer) is Int8Product and layer.weight.dtype == torch.int8
    whole, scale = folding.to_int8(weight)
    rounded, step = round_tokens(x.flatten(0, 1))
    sums = (rounded.long() - 128) @ whole.long().t()
    expected = (sums * scale.double() * step.double() + bias.double()).view(2, 5, 30)
    error = 1e-6 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(layer(x).double(), expected, rtol=error, atol=error)
    torch.testing.assert_close(layer.gelu(x).double(), gelu(expected), rtol=error, atol=max(error, 5e-4))
    exact = F.linear(x.float(), weight, bias.float())
    assert float((layer(x).float() - exact).norm() / exact.norm()) < 0.03
    down, up = torch.randn(2, 40).to(dtype), torch.randn(30, 2).to(dtype)
    moved = make_linear(placement, weight, bias, down, up, plain=False)(x) - layer(x)
    torch.testing.assert_close(moved, F.linear(F.linear(x, down), up), rtol=0.05, atol=30 * error)


@pytest.mark.parametrize("multiplies", [False, pytest.param(True, marks=units)])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=bfloat16_units)])
def test_actions_are_close(multiplies: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "INT8_FROM", 1)
    monkeypatch.setattr(cpu, "has_int8_products", lambda: multiplies)
    model, (latent, context, state) = model_of(), inputs_of()
    folded = FoldedWAM(model, Placement(CPU, dtype, int8=True))
    assert type(folded.blocks[0].qkv) is (Int8Product if multiplies else Int8)
    action = folded.act(latent, folded.batch_prompts([folded.encode_prompt(one) for one in context]), state)
    with torch.no_grad():
        exact = model.act(latent, context, state)
    most = 0.1 if dtype == torch.float32 else 0.3
    assert 1e-4 < float((action - exact).square().mean().sqrt()) < most * float(exact.std())


def test_only_a_cpu_multiplies_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_int8_products", lambda: True)
    assert SINGLE._replace(int8=True).multiplies_int8 == torch.backends.mkldnn.is_available()
    assert not SINGLE.multiplies_int8
    assert not Placement(torch.device("cuda"), torch.bfloat16, int8=True).multiplies_int8
    assert not Placement(CPU, torch.float64, int8=True).multiplies_int8


@pytest.mark.usefixtures("looked_up_again")
@pytest.mark.parametrize("wrong", ["no units", "a wrong product"])
def test_products_are_used_where_they_are_fast_and_right(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong == "no units":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    else:
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
        monkeypatch.setattr(cpu, "int8_product", lambda *_: torch.zeros(2, 16))  # as saturated sums would be
    assert not cpu.has_int8_products()


class Recorded(Same):
    """Latents that note in which dtype frames are to be encoded."""

    def __init__(self) -> None:
        self.asked: list[torch.dtype] = []

    def with_frames_in(self, dtype: torch.dtype) -> "Recorded":
        self.asked.append(dtype)
        return self


@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize(("dtype", "int8"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)])
def test_frames_are_in_bfloat16_where_actions_are_not_exact(
    has: bool, dtype: torch.dtype, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cpu, engines):
        monkeypatch.setattr(module, "has_bfloat16", lambda: has)
    monkeypatch.setattr(cpu, "has_int8_products", lambda: has)
    monkeypatch.setattr(cpu, "pack_int8", lambda weight: weight)  # which this CPU need not be able to
    monkeypatch.setattr(folding, "PACKED_FROM", 2**40)
    latents: LatentCodec = Recorded()
    engine = Engine(model_of(), latents, lambda _: torch.ones(1, 6, 10), CPU, dtype, int8=int8)
    exact = dtype == torch.float32 and not int8
    assert latents.asked == ([torch.bfloat16] if has and not exact else [])
    assert engine.latents is latents
    says = {(True, True): "products in 8 bits", (True, False): "weights in 8 bits"}.get((int8, has), "by the engine")
    assert engine.description.endswith(says)


@bfloat16_units
def test_packed_bfloat16_has_gelu_within_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "PACKED_FROM", 1)
    torch.manual_seed(0)
    weight, bias, x = torch.randn(30, 40) / 6, torch.randn(30), torch.randn(2, 5, 40)
    half = Placement(CPU, torch.bfloat16)
    layer = make_linear(half, weight, half.put(bias), plain=False)
    plain = make_linear(half, weight, half.put(bias), plain=True)
    assert type(layer) is Packed and type(plain) is Folded
    exact = gelu(F.linear(x.bfloat16().double(), weight.bfloat16().double(), bias.bfloat16().double()))
    errors = [float((one.gelu(x.bfloat16()).double() - exact).abs().max()) for one in (layer, plain)]
    assert errors[0] <= 2**-8 * float(exact.abs().max()) and errors[0] <= 1.1 * errors[1]
