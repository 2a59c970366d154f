import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightwam.config.schema import FlowConfig
from lightwam.model import flow
from lightwam.types import pool


def test_the_schedule_is_shifted_towards_noise_and_keeps_its_ends() -> None:
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(flow.shifted(u, 5.0), torch.tensor([0.0, 5 / 6, 1.0], dtype=torch.float64))
    assert torch.equal(flow.shifted(u, 1.0), u)


def test_mixing_leaves_the_present_clean() -> None:
    clean, noise, sigma = torch.randn(2, 3, 3, 2, 2), torch.randn(2, 3, 3, 2, 2), torch.tensor([0.25, 1.0])
    mixed = flow.mix(clean, noise, sigma)
    assert torch.equal(mixed[:, :, 0], clean[:, :, 0])
    torch.testing.assert_close(mixed[0, :, 1:], 0.75 * clean[0, :, 1:] + 0.25 * noise[0, :, 1:])
    torch.testing.assert_close(mixed[1, :, 1:], noise[1, :, 1:])


def test_pooling_averages_squares_of_four() -> None:
    latents = torch.randn(2, 3, 3, 4, 6)
    expected = torch.nn.functional.avg_pool3d(latents, (1, 2, 2))
    torch.testing.assert_close(pool(latents), expected)


def test_the_time_weight_is_zero_at_its_lowest_and_one_on_average_over_the_sampled_times() -> None:
    config = FlowConfig(shift=5.0, num_times=1000)
    u = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    weights = flow.time_weight(1000 * flow.shifted(u, config.shift), config)
    assert math.isclose(weights.mean().item(), 1.0, rel_tol=1e-12)
    assert weights.min().item() == 0.0
    assert weights.argmax() == (flow.shifted(u, config.shift) - 0.5).abs().argmin()


def test_time_weight_computed_by_hand() -> None:
    times = [1000 * 5 * (i / 1000) / (1 + 4 * (i / 1000)) for i in range(1000, 0, -1)]
    bell = [math.exp(-2 * ((t - 500) / 1000) ** 2) for t in times]
    mean = sum(b - min(bell) for b in bell) / 1000
    expected = (math.exp(-2 * ((137.5 - 500) / 1000) ** 2) - min(bell)) / mean
    weight = flow.time_weight(torch.tensor([137.5], dtype=torch.float64), FlowConfig(shift=5.0, num_times=1000))
    assert math.isclose(weight.item(), expected, rel_tol=1e-12)


def test_a_latent_frame_is_padding_only_when_all_its_frames_are() -> None:
    is_pad = torch.tensor(
        [[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]]
    ).bool()
    expected = torch.tensor([[False, True], [False, False], [True, True]])
    assert torch.equal(flow.latent_frame_is_pad(is_pad, 3), expected)


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.floats(-1e6, 1e6))
def test_masked_values_do_not_change_the_mean(keep: list[bool], other: float) -> None:
    mask, values = torch.tensor([keep]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    changed = torch.where(mask, values, torch.tensor(other))
    expected = values[mask].mean().item() if any(keep) else 0.0
    assert flow.masked_mean(changed, mask).item() == flow.masked_mean(values, mask).item()
    assert math.isclose(flow.masked_mean(values, mask).item(), expected, rel_tol=1e-6)
