"""The packed training step against the plain one: the same losses and the same gradients, padding included."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from lora_models import FROZEN, batch_of, gradients, model_of, worst
from torch import Tensor

from lightwam.engine import fused_block, packed_block, packed_step
from lightwam.engine.fused_lora import LoraFeedForward, LoraLinear
from lightwam.engine.packed_step import PackedLoss, packed_loss
from lightwam.kernels import choice
from lightwam.model.layers import FeedForward
from lightwam.model.lora import LoRA
from lightwam.types import Batch, Losses

SCRATCH = replace(FROZEN, lora_rank=0, frozen=False)
BACKBONES = {
    "frozen with LoRA": FROZEN,
    "from scratch": SCRATCH,
    "from scratch with LoRA": replace(FROZEN, frozen=False),
    "a tap at the last block": replace(FROZEN, taps=(1, 3)),
    "one block": replace(SCRATCH, num_blocks=1, taps=(0,)),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_packed_losses_and_gradients_equal_the_plain_ones(name: str, checkpointing: bool) -> None:
    model, given = model_of(BACKBONES[name]), batch_of()
    plain, packed_ = model.loss(*given), packed_loss(model, *given, checkpointing=checkpointing)
    torch.testing.assert_close(tuple(packed_), tuple(plain), rtol=1e-12, atol=0)
    expected = gradients(model, plain)
    assert len(expected) == sum(p.requires_grad for p in model.parameters())
    assert worst(gradients(model, packed_), expected) < 1e-12


def masked(batch: Batch, action: list[bool], video: list[bool]) -> Batch:
    """Samples of which some do not teach the actions, and some not the video."""
    return replace(
        batch,
        action_is_pad=batch.action_is_pad | ~torch.tensor(action)[:, None],
        frame_is_pad=batch.frame_is_pad | ~torch.tensor(video)[:, None],
    )


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The functions around the kernels, with plain torch in the kernels' place; layouts of the blocks that ran."""
    layouts: list[int] = []
    block = fused_block.run_block
    monkeypatch.setattr(choice, "on", lambda device: True)
    monkeypatch.setattr(fused_block, "run_block", lambda *given: (layouts.append(given[3]), block(*given))[1])
    return layouts


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        ("frozen with LoRA", False),
        ("frozen with LoRA", True),
        ("a tap at the last block", False),
        ("from scratch", False),
    ],
)
def test_with_kernels_too(name: str, checkpointing: bool, kernels: list[int]) -> None:
    """Blocks whose weights are all frozen and have LoRA take them; the others do not."""
    model, given = model_of(BACKBONES[name]), batch_of()
    plain, ours = model.loss(*given), packed_loss(model, *given, checkpointing=checkpointing)
    torch.testing.assert_close(tuple(ours), tuple(plain), rtol=1e-12, atol=0)
    assert worst(gradients(model, ours), gradients(model, plain)) < 1e-12
    assert bool(kernels) == (name != "from scratch")


@pytest.mark.parametrize("action", [[True, False, True], [False, True, False], [False, False, False]])
@pytest.mark.parametrize("video", [[False, True, True], [True, False, True], [False, False, False]])
def test_samples_without_a_loss_give_it_no_gradient_in_either_step(action: list[bool], video: list[bool]) -> None:
    model, (batch, u, noise) = model_of(FROZEN), batch_of()
    mixed = masked(batch, action, video)
    plain, ours = model.loss(mixed, u, noise), packed_loss(model, mixed, u, noise)
    torch.testing.assert_close(tuple(ours), tuple(plain), rtol=1e-12, atol=0)
    # the losses and gradients are the sum of those of the samples alone, each over the size of the batch
    alone = [packed_loss(model, mixed.rows(i, i + 1), u[i : i + 1], noise[i : i + 1]) for i in range(3)]
    full = [packed_loss(model, batch.rows(i, i + 1), u[i : i + 1], noise[i : i + 1]) for i in range(3)]
    for name, teaches in (("action", action), ("video", video)):
        expected = [getattr(full[i], name) if teaches[i] else torch.tensor(0.0) for i in range(3)]
        torch.testing.assert_close([getattr(loss, name) for loss in alone], expected, check_dtype=False)
        torch.testing.assert_close(getattr(ours, name) * 3, sum(expected), check_dtype=False)
    summed = Losses(*(sum(parts) / 3 for parts in zip(*alone, strict=True)))
    found, expected_gradients = gradients(model, ours), gradients(model, summed)
    plain_gradients = gradients(model, model.loss(mixed, u, noise))
    for key, value in expected_gradients.items():
        scale = float(value.norm()) + 1e-12
        assert float((found[key] - value).norm()) <= 1e-10 * scale
        assert float((plain_gradients[key] - value).norm()) <= 1e-10 * scale
    if not any(action) and not any(video):
        assert float(ours.total.detach()) == 0 and not any(value.any() for value in found.values())


@pytest.mark.parametrize("num_video", [1, 2])
def test_samples_without_a_video_pass(num_video: int, kernels: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The action loss is of all samples, the video loss of the first ones alone; with kernels if it is two."""
    monkeypatch.setattr(choice, "on", lambda device: num_video == 2)
    model, (batch, u, noise) = model_of(FROZEN), batch_of()
    assert num_video < len(u)
    given = u[:num_video], noise[:num_video]
    plain, ours = model.loss(batch, *given), packed_loss(model, batch, *given)
    torch.testing.assert_close(tuple(ours), tuple(plain), rtol=1e-12, atol=0)
    assert worst(gradients(model, ours), gradients(model, plain)) < 1e-12
    assert bool(kernels) == (num_video == 2)
    torch.testing.assert_close(ours.action, model.loss(batch, u, noise).action)
    torch.testing.assert_close(ours.video, model.loss(batch.rows(0, num_video), *given).video)


@pytest.mark.parametrize(
    ("name", "num_video", "checkpointing", "video_loss_weight"),
    [
        ("frozen with LoRA", 3, True, 1.0),
        ("from scratch", 2, False, 1.0),
        ("a tap at the last block", 1, False, 1.0),
        ("frozen with LoRA", 3, False, 0.0),
    ],
)
def test_with_foresight(
    name: str, num_video: int, checkpointing: bool, video_loss_weight: float, kernels: list[int]
) -> None:
    """With the kernels' functions where weights are frozen, but for samples without a video pass."""
    model = model_of(BACKBONES[name], foresight=2, video_loss_weight=video_loss_weight)
    batch, u, noise = batch_of()
    given = batch, u[:num_video], noise[:num_video]
    plain, ours = model.loss(*given), packed_loss(model, *given, checkpointing=checkpointing)
    torch.testing.assert_close(tuple(ours), tuple(plain), rtol=1e-12, atol=0)
    assert worst(gradients(model, ours), gradients(model, plain)) < 1e-12
    assert bool(kernels) == (name != "from scratch" and video_loss_weight > 0)
    without = model_of(BACKBONES[name], video_loss_weight=video_loss_weight).loss(*given)
    assert plain.video == without.video and not torch.isclose(plain.action, without.action, rtol=1e-3)


@pytest.mark.parametrize("name", ["frozen with LoRA", "from scratch"])
def test_with_an_expert_that_reads_the_state(name: str) -> None:
    model, given = model_of(BACKBONES[name], state_frequencies=3), batch_of()
    plain, ours = model.loss(*given), packed_loss(model, *given)
    torch.testing.assert_close(tuple(ours), tuple(plain), rtol=1e-12, atol=0)
    found = gradients(model, ours)
    assert worst(found, gradients(model, plain)) < 1e-12 and found["expert.state_reader.proj.weight"].all()


def test_in_single_precision_too() -> None:
    model, given = model_of(FROZEN, torch.float32), batch_of(torch.float32)
    plain, packed_ = model.loss(*given), packed_loss(model, *given)
    torch.testing.assert_close(tuple(packed_), tuple(plain), rtol=1e-5, atol=0)
    assert worst(gradients(model, packed_), gradients(model, plain)) < 1e-5


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """Other kernels there, for attention and norms: the same losses and gradients in float32 all the same."""
    model, (batch, u, noise) = model_of(FROZEN, torch.float32).cuda(), batch_of(torch.float32)
    given = batch.to("cuda"), u.cuda(), noise.cuda()
    plain, packed_ = model.loss(*given), packed_loss(model, *given)
    torch.testing.assert_close(tuple(packed_), tuple(plain), rtol=1e-5, atol=0)
    assert worst(gradients(model, packed_), gradients(model, plain)) < 1e-4


def test_half_precision_is_as_near_to_single_as_the_plain_step_is() -> None:
    given, errors = batch_of(torch.float32), {"plain": 0.0, "packed": 0.0, "kernels": 0.0}
    for seed in range(4):
        exact, rounded = model_of(FROZEN, torch.float32), model_of(FROZEN, torch.float32)
        torch.manual_seed(seed)
        for parameter in rounded.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        rounded = rounded.to(torch.bfloat16)
        exact.load_state_dict(rounded.state_dict())
        expected = gradients(exact, exact.loss(*given))
        for name in errors:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(choice, "on", lambda device, on=name == "kernels": on)
                losses = rounded.loss(*given) if name == "plain" else packed_loss(rounded, *given)
                found = gradients(rounded, losses)
            off = [(found[key] - expected[key]).norm() / expected[key].norm() for key in expected]
            errors[name] += float(torch.stack(off).mean()) / 4
    assert errors["plain"] > 1e-3, "this is about rounding"
    assert errors["packed"] < 1.25 * errors["plain"]
    assert errors["kernels"] < errors["packed"], "each step between products rounds once"


def test_much_padding_keeps_its_gradient_in_half_precision() -> None:
    """Hundreds of padded positions share one key and value: their gradients must not be added up in bfloat16."""
    size = 16
    batch, _, _ = batch_of(torch.float32, size)
    torch.manual_seed(4)
    context = torch.randn(size, 128, 10)
    context[:, 20:] = 0
    given = replace(batch, context=context), torch.rand(size), torch.randn(size, 3, 3, 4, 6)
    rounded, exact = model_of(FROZEN, torch.bfloat16), model_of(FROZEN, torch.float32)
    exact.load_state_dict(rounded.state_dict())
    expected = gradients(exact, exact.loss(*given))
    plain, ours = gradients(rounded, rounded.loss(*given)), gradients(rounded, packed_loss(rounded, *given))
    for name in (name for name in expected if "attn2.lora_k" in name or "attn2.lora_v" in name):
        errors = [float((way[name] - expected[name]).norm() / expected[name].norm()) for way in (plain, ours)]
        assert errors[1] < 2 * errors[0] + 0.01, (name, errors)


@pytest.mark.parametrize("weights", [{"video_loss_weight": 0.0}, {"video_loss_weight": 0.3, "action_loss_weight": 5.0}])
def test_packed_loss_weights(weights: dict[str, float]) -> None:
    model, given = model_of(FROZEN, **weights), batch_of()
    plain, ours = model.loss(*given), packed_loss(model, *given)
    torch.testing.assert_close(tuple(ours), tuple(plain), rtol=1e-12, atol=0)
    assert worst(gradients(model, ours), gradients(model, plain)) < 1e-12


def test_first_frame_is_dropped_before_the_last_feed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = model_of(FROZEN), batch_of()
    widths: list[int] = []
    plain = packed_block.feed_forward
    monkeypatch.setattr(packed_block, "feed_forward", lambda ffn, x: (widths.append(x.shape[1]), plain(ffn, x))[1])
    packed_loss(model, *given)
    action, first, later = 4 * 6, 2 * 3, 2 * 2 * 3
    assert widths == [action + first + later] * 3 + [later]


def test_padding_is_encoded_once() -> None:
    batch, _, _ = batch_of()
    model = model_of(FROZEN)
    context = model.append_proprio(batch.context, batch.state)
    place, flat = packed_step.token_places(batch), context.flatten(0, 1)
    assert len(place) == 3 + 1 + 5 + 3, "tokens of three prompts, three states"
    rows = torch.cat((flat[place], torch.zeros_like(flat[:1])))
    assert torch.equal(packed_step.restore_padding(rows[:, :, None], place, context.shape[:2])[..., 0], context)
    marked = replace(batch, is_token=batch.context.any(dim=2))
    assert torch.equal(packed_step.token_places(marked), place)
    assert torch.equal(packed_step.token_places(marked.rows(1, 3)), packed_step.token_places(batch.rows(1, 3)))
    embedded = packed_step.embed_context(model, batch)
    assert len(embedded.tokens) == len(place) + 1
    for block, plain in zip(model.dit.blocks, model.dit.encode_context(context), strict=True):
        torch.testing.assert_close(embedded.key_value(block), plain, rtol=1e-12, atol=1e-14)


def test_a_step_needs_no_number_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where there are none: on a GPU the step would wait for each of them."""
    batch, u, noise = batch_of()
    marked = replace(batch, is_token=batch.context.any(dim=2))
    model, given = model_of(FROZEN).to("meta"), (marked.to("meta"), u.to("meta"), noise.to("meta"))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    packed_loss(model, *given).total.backward()
    assert model.expert.fused_proj.weight.grad is not None
    with pytest.raises((NotImplementedError, RuntimeError)):
        packed_loss(model, batch.to("meta"), *given[1:])


def test_state_of_zeros_is_not_padding() -> None:
    batch, u, noise = batch_of()
    batch = replace(batch, state=torch.zeros_like(batch.state))
    model = model_of(FROZEN)
    torch.nn.init.zeros_(model.proprio_encoder.bias)
    assert worst(
        gradients(model, packed_loss(model, batch, u, noise)), gradients(model, model.loss(batch, u, noise))
    ) < (1e-12)


def layer(dtype: torch.dtype = torch.float64) -> tuple[torch.nn.Linear, LoRA, Tensor]:
    torch.manual_seed(3)
    linear, lora = torch.nn.Linear(6, 5), LoRA(6, 5, 2, 3.0)
    torch.nn.init.normal_(lora.up.weight)
    return linear.to(dtype).requires_grad_(False), lora.to(dtype), torch.randn(4, 6).to(dtype).requires_grad_()


def test_lora_function_gradients_equal_finite_differences() -> None:
    linear, lora, x = layer()
    arguments = (linear.weight, linear.bias, lora.down.weight, lora.up.weight, lora.scale)
    assert torch.autograd.gradcheck(LoraLinear.apply, (x, *arguments))
    ffn = FeedForward(6, 7, 2, 3.0).double()
    assert ffn.lora_in is not None and ffn.lora_out is not None
    first, second = ffn.net[0].proj.requires_grad_(False), ffn.net[2].requires_grad_(False)
    parts = [
        value
        for one, two in ((first, ffn.lora_in), (second, ffn.lora_out))
        for value in (one.weight, one.bias, two.down.weight, two.up.weight, two.scale)
    ]
    assert torch.autograd.gradcheck(LoraFeedForward.apply, (x, *parts))


def test_packed_module_equals_packed_function() -> None:
    model, given = model_of(FROZEN), batch_of()
    assert PackedLoss(model)(*given).total == packed_loss(model, *given).total
