"""training/optimizer.py: who updates what, Muon against torch's, and resuming from a saved state."""

from dataclasses import replace

import pytest
import torch

from lightwam.config.schema import Recipe, TrainConfig
from lightwam.model.light_wam import LightWAM
from lightwam.training.optimizer import Muon, Optimizer, orthogonal, weight_groups

SETTINGS = TrainConfig(steps=10, batch_size=2, learning_rate=1e-2, muon_learning_rate=5e-2, weight_decay=0.1)


def with_gradients(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    return parameters


def test_only_matrices_decay(tiny_recipe: Recipe) -> None:
    names = dict(LightWAM(tiny_recipe.model).named_parameters())
    decayed, others = weight_groups(names, 0.07)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.07, 0.0)
    held = [id(p) for group in (decayed, others) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in names.values())  # each once
    in_first = {id(p) for p in decayed["params"]}
    for name, parameter in names.items():
        assert (id(parameter) in in_first) == (name.endswith("weight") and parameter.ndim >= 2), name
    assert len(decayed["params"]) > 10
    assert len(others["params"]) > 10


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
def test_orthogonal_keeps_the_directions_and_levels_the_singular_values(shape: tuple[int, int]) -> None:
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    spread = torch.linspace(0.5, 3, min(shape))
    got = u.mT @ orthogonal(u * spread @ vh) @ vh.mT  # diagonal when the singular vectors are the same
    values = torch.diagonal(got, dim1=1, dim2=2)
    assert (got - torch.diag_embed(values)).abs().max() < 1e-4
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_muon_is_torchs_muon() -> None:
    torch_muon = getattr(torch.optim, "Muon", None)
    if torch_muon is None:
        pytest.skip("this torch has no Muon")
    shapes = ((24, 24), (48, 24), (24, 48), (24, 24))
    ours, theirs = with_gradients(*shapes), with_gradients(*shapes)
    one = Muon(ours, lr=0.01, weight_decay=0.1)
    other = torch_muon(theirs, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    before = [p.detach().clone() for p in ours]
    for step in range(3):
        for p, q, fresh in zip(ours, theirs, with_gradients(*shapes, seed=step), strict=True):
            p.grad, q.grad = fresh.grad, fresh.grad
        one.step()
        other.step()
    for p, q, start in zip(ours, theirs, before, strict=True):
        moved = (p - start).norm()
        assert (p - q).norm() < 0.03 * moved  # theirs rounds to bfloat16
        assert moved > 0.01


def test_muon_gets_the_matrices_of_blocks_and_adapters_and_adamw_all_else(tiny_recipe: Recipe) -> None:
    names = dict(LightWAM(tiny_recipe.model).named_parameters())
    adamw, muon = Optimizer(names, SETTINGS).state_dict()
    chosen = [name for name, p in names.items() if name.startswith(("dit.blocks", "dit.adapters")) and p.ndim == 2]
    assert len(muon["param_groups"][0]["params"]) == len(chosen) > 5
    assert sum(len(group["params"]) for group in adamw["param_groups"]) == len(names) - len(chosen)
    assert len(Optimizer(names, replace(SETTINGS, muon_learning_rate=0.0)).state_dict()) == 1


def test_every_group_follows_the_schedule_from_its_own_peak(tiny_recipe: Recipe) -> None:
    model = LightWAM(tiny_recipe.model)
    optimizer = Optimizer(dict(model.named_parameters()), SETTINGS)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for share in (0.5, 0.25):
        optimizer.step(share)
        assert [group["lr"] for part in optimizer.state_dict() for group in part["param_groups"]] == [
            1e-2 * share, 1e-2 * share, 5e-2 * share]  # fmt: skip
    assert all(p.grad is None for p in model.parameters())


def test_a_saved_optimizer_resumes_to_the_same_bits(tiny_recipe: Recipe) -> None:
    def run(model: LightWAM, optimizer: Optimizer, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step(0.5)

    torch.manual_seed(0)
    whole, broken = LightWAM(tiny_recipe.model), LightWAM(tiny_recipe.model)
    broken.load_state_dict(whole.state_dict())
    run(whole, Optimizer(dict(whole.named_parameters()), SETTINGS), range(4))
    first = Optimizer(dict(broken.named_parameters()), SETTINGS)
    run(broken, first, range(2))
    second = Optimizer(dict(broken.named_parameters()), SETTINGS)
    second.load_state_dict(first.state_dict())
    run(broken, second, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))


def test_gradients_of_micro_batches_are_added_up_in_float32() -> None:
    """A sum in bfloat16 would stay at 256: its next number is 258."""
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    other = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))  # gets its first gradient later
    optimizer = Optimizer({"weight": weight, "other": other}, replace(SETTINGS, muon_learning_rate=0.0))
    for number in range(3):
        weight.grad = torch.full_like(weight, 256.0 if number == 0 else 1.0)
        if number:
            other.grad = torch.ones_like(other)
        optimizer.collect()
        assert weight.grad is None and other.grad is None
    assert float(optimizer.clip(1e9)) == pytest.approx((4 * 258.0**2 + 2 * 2.0**2) ** 0.5)
    gradient = optimizer.masters["weight"].grad
    assert gradient is not None and gradient.tolist() == [258.0] * 4
    optimizer.step(1.0)
    assert optimizer.masters["weight"].grad is None
    assert torch.equal(weight, optimizer.masters["weight"].to(torch.bfloat16)) and weight.any()
