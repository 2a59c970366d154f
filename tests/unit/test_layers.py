import math

import torch
import torch.nn.functional as F

from lightwam.model import layers

CPU = torch.device("cpu")


def test_the_sinusoid_is_cosines_then_sines() -> None:
    code = layers.sinusoid(torch.tensor([0.0, 3.0, 937.25]), 8)
    for row, position in enumerate((0.0, 3.0, 937.25)):
        angles = [position * 10000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(code[row], torch.tensor(expected), rtol=0, atol=1e-6)


def test_rms_norm_is_over_all_heads() -> None:
    norm, x = layers.RMSNorm(6), torch.randn(2, 3, 6)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    half = norm.bfloat16()
    exact = layers.F.rms_norm(x.bfloat16().float(), (6,), half.weight.float(), 1e-6)
    assert torch.equal(half(x.bfloat16()), exact.bfloat16())  # computed in fp32, rounded once


def test_rope_rotates_by_time_then_rows_then_columns() -> None:
    rope = layers.rope_3d(2, 3, 4, 24, CPU)
    assert rope.shape == (24, 1, 12)
    frame, row, column = 1, 2, 3
    token = (frame * 3 + row) * 4 + column
    angles = [p * 10000 ** (-2 * i / 8) for p in (frame, row, column) for i in range(4)]
    expected = torch.polar(torch.ones(12), torch.tensor(angles))
    torch.testing.assert_close(rope[token, 0], expected)


def test_rope_gives_time_the_remainder_of_the_dims() -> None:
    rope = layers.rope_3d(2, 2, 2, 128, CPU)
    still = rope[:, 0].angle().abs().sum(0) == 0
    assert not still.any() and rope.shape[-1] == 64
    later = rope[4, 0].angle() != 0
    assert later.sum() == 22 and later[:22].all(), "of 128 dims 44 are time's, 42 the row's, 42 the column's"


def test_rope_scores_depend_on_relative_position_only() -> None:
    rope = layers.rope_3d(1, 1, 9, 24, CPU)
    q, k = torch.randn(24).expand(1, 9, 1, 24), torch.randn(24).expand(1, 9, 1, 24)
    scores = torch.einsum("bqhd,bkhd->qk", layers.apply_rope(q, rope), layers.apply_rope(k, rope))
    for offset in range(-8, 9):
        line = scores.diagonal(offset)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-5)


def test_rope_keeps_lengths_and_the_first_token() -> None:
    rope, x = layers.rope_3d(2, 2, 2, 12, CPU), torch.randn(2, 8, 3, 12)
    turned = layers.apply_rope(x, rope)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])


def test_attention_is_softmax_of_scaled_products() -> None:
    q, k, v = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 2, 4), torch.randn(2, 5, 2, 4)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 2).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
    torch.testing.assert_close(layers.attention(q, k, v), expected)


def test_the_norm_has_the_backbones_epsilon() -> None:
    x = torch.randn(2, 8) * 1e-3
    torch.testing.assert_close(layers.layer_norm(x), F.layer_norm(x, (8,), eps=1e-6))
    assert not torch.allclose(layers.layer_norm(x), F.layer_norm(x, (8,)), rtol=1e-2)


def test_gelu_is_the_tanh_form() -> None:
    x = torch.linspace(-3, 3, 7)
    expected = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(layers.gelu(x), expected)
