"""Our model is the published one: it reproduces recorded runs from their weights, arrays and gradients alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightwam.model import flow
from lightwam.model.light_wam import LightWAM
from lightwam.training import published

TOLERANCE = 1e-5
"""largest absolute difference of an array, fp32"""
GRADIENT_TOLERANCE = 1e-4
"""largest relative difference of a gradient's norm"""


def assert_close(ours: Tensor, recorded: Tensor, what: str) -> None:
    assert ours.shape == recorded.shape, f"{what}: {tuple(ours.shape)}, recorded {tuple(recorded.shape)}"
    difference = (ours.double() - recorded.double()).abs().max().item()
    assert difference <= TOLERANCE, f"{what} differs by {difference:.2e}"


def action_pass(recorded: Any, model: LightWAM) -> dict[str, Tensor]:
    given, state = recorded.inputs, recorded.inputs["proprio"][:, 0]
    latent = given["latents"][:, :, :1]
    context = model.append_proprio(given["context"], state)
    arrays = {"act.chunk": model.act(latent, given["context"], state), "act.context_with_proprio": context}

    def record(block: int, before: Tensor) -> None:
        arrays[f"act.backbone_state.{block}"] = before.flatten(1, 2)

    hooks = [
        adapter.register_forward_hook(lambda _, inputs, __, block=block: record(int(block), inputs[0]))
        for block, adapter in model.dit.adapters.items()
    ]
    taps = model.dit(latent, None, model.dit.encode_context(context), stop_at_last_tap=True).taps
    for hook in hooks:
        hook.remove()
    for block, tokens in zip(recorded.config.backbone.taps, taps, strict=True):
        arrays[f"act.adapted_state.{block}"] = tokens
    return arrays


def video_pass(recorded: Any, model: LightWAM) -> dict[str, Tensor]:
    batch, sigma, noise = recorded.batch, recorded.sigma, recorded.inputs["video_noise"]
    context_kv = model.dit.encode_context(model.append_proprio(batch.context, batch.state))
    noisy = flow.mix(batch.clip, noise, sigma)
    losses = model.loss(batch, recorded.u, noise)
    return {
        "train.noisy_latents": noisy,
        "train.velocity_prediction": model.velocity(noisy, sigma, context_kv),
        "train.video_weight": flow.time_weight(model.config.flow.num_times * sigma, model.config.flow),
        "train.loss": losses.total[None],
        "train.loss_video": losses.video[None],
        "train.loss_action": losses.action[None],
    }


def publication_names(model: LightWAM) -> dict[str, str]:
    """Our parameter name -> the one under which the recording lists its gradient."""
    names = {}
    for section, pairs in published.published_names(model.config).items():
        for theirs, ours in pairs.items():
            video = theirs.startswith("mixtures.video.")
            names[ours] = theirs.replace("mixtures.video.", "video_expert.") if video else f"{section}.{theirs}"
    return names


def loaded(recorded: Any) -> LightWAM:
    model = LightWAM(recorded.config)
    model.load_state_dict(published.read(recorded.checkpoint, recorded.config).state)
    return model


@torch.no_grad()
def test_published_arrays(recorded: Any) -> None:
    model = loaded(recorded)
    ours = action_pass(recorded, model) | video_pass(recorded, model)
    unknown = set(recorded.outputs) - set(ours)
    assert not unknown and len(recorded.outputs) > 0, f"recorded, but not compared here: {unknown}"
    for name, array in recorded.outputs.items():
        assert_close(ours[name], array, name)


def test_published_gradients(recorded: Any) -> None:
    model = loaded(recorded)
    model.loss(recorded.batch, recorded.u, recorded.inputs["video_noise"]).total.backward()
    names, norms = publication_names(model), recorded.facts["grad_norms"]
    trained = {names[name]: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == set(norms)
    for name, norm in norms.items():
        gradient = trained[name]
        assert gradient is not None, f"no gradient reaches {name}"
        ours = gradient.double().norm().item()
        assert abs(ours - norm) <= GRADIENT_TOLERANCE * norm, f"{name}: {ours:.6e}, recorded {norm:.6e}"


def test_published_trainable_count(recorded: Any) -> None:
    model = loaded(recorded)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == recorded.facts["trainable"]


def test_published_round_trip_is_bit_equal(recorded: Any, tmp_path: Path) -> None:
    there = published.read(recorded.checkpoint, recorded.config)
    model = loaded(recorded)
    by_file, by_model = tmp_path / "file.pt", tmp_path / "model.pt"
    published.write(by_file, there, recorded.config)
    of_model = {name: value.to(there.state[name].dtype) for name, value in model.state_dict().items()}
    published.write(by_model, replace(there, state=of_model), recorded.config)
    original = torch.load(recorded.checkpoint, weights_only=True)
    for path in (by_file, by_model):
        assert_same_bits(torch.load(path, weights_only=True), original)


def assert_same_bits(ours: dict[str, Any], original: dict[str, Any]) -> None:
    assert list(ours) == list(original)
    for section, value in original.items():
        if not isinstance(value, dict):
            assert ours[section] == value and type(ours[section]) is type(value), section
            continue
        assert list(ours[section]) == list(value), f"{section}: other keys, or in another order"
        for name, tensor in value.items():
            mine = ours[section][name]
            assert mine.dtype == tensor.dtype and mine.shape == tensor.shape, name
            assert torch.equal(mine.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
