import pytest
import torch
from torch import nn

from lightwam.model.layers import Attention
from lightwam.model.lora import LoRA, linear_with_lora, make_lora


def trained(in_width: int, out_width: int, rank: int, alpha: float) -> LoRA:
    lora = LoRA(in_width, out_width, rank, alpha)
    nn.init.normal_(lora.up.weight)
    return lora


def test_a_fresh_update_changes_nothing() -> None:
    linear, x = nn.Linear(6, 4), torch.randn(3, 6)
    assert torch.equal(linear_with_lora(linear, LoRA(6, 4, 2, 4.0), x), linear(x))


def test_merged_and_unmerged_agree() -> None:
    linear, lora, x = nn.Linear(6, 4), trained(6, 4, 2, 5.0), torch.randn(3, 6)
    merged = nn.functional.linear(x, linear.weight + lora.update(), linear.bias)
    torch.testing.assert_close(linear_with_lora(linear, lora, x), merged)


def test_lora_update_is_computed_in_float32() -> None:
    lora = trained(6, 4, 2, 5.0)
    expected = lora.up.weight @ lora.down.weight * 2.5
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lora.update(), expected)


def test_rank_zero_means_no_modules() -> None:
    assert make_lora(6, 4, 0, 1.0) is None
    assert not [name for name, _ in Attention(24, 1, 0, 1.0).named_parameters() if "lora" in name]


def test_lora_equals_peft() -> None:
    peft = pytest.importorskip("peft", reason="peft is a development-time oracle")
    base = nn.Sequential(nn.Linear(6, 4))
    lora, x = trained(6, 4, 3, 5.0), torch.randn(8, 6)
    ours = linear_with_lora(base[0], lora, x)
    merged = nn.functional.linear(x, base[0].weight + lora.update(), base[0].bias)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, target_modules=["0"]))
    layer = theirs.base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(lora.down.weight)
        layer.lora_B["default"].weight.copy_(lora.up.weight)
    torch.testing.assert_close(theirs(x), ours, rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs.merge_and_unload()(x), merged, rtol=0, atol=1e-6)
