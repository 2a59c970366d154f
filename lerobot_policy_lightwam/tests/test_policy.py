"""The policy computes what lightwam computes: batches, losses, actions and imagined pictures are the core's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors

from lerobot_policy_lightwam import LightWAMConfig, LightWAMPolicy, make_lightwam_pre_post_processors
from lerobot_policy_lightwam.convert import ConvertOptions, convert
from lerobot_policy_lightwam.step_inputs import DrawCount, PromptTable
from lightwam.config.schema import PcaConfig
from lightwam.data.codec import Codec
from lightwam.data.loader import WindowLoader
from lightwam.data.statistics import measure
from lightwam.encoders.frozen import Prompts
from lightwam.encoders.pca import PcaLatents
from lightwam.engine.packed_step import packed_loss
from lightwam.errors import CheckpointError, ConfigError, DatasetError, WireError
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.training.batches import flow_draw
from lightwam.training.dataset import open_training_data
from lightwam.training.train import train
from lightwam.types import Observation, to_pixels

INPUTS = {
    "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
    "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
}
ACTION = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
MEASURED = {"mean": [0.1] * 8, "std": [2.0] * 8}


def policy(**settings: Any) -> LightWAMPolicy:
    torch.manual_seed(0)
    config = LightWAMConfig(
        recipe="point", input_features=dict(INPUTS), output_features=ACTION, measured=MEASURED, device="cpu", **settings
    )
    return LightWAMPolicy(config).eval()


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    top = rng.integers(0, 256, (32, 32, 3), np.uint8)
    return Observation({"top": top}, rng.uniform(-1, 1, 2).astype(np.float32), "move to the red dot")


def seen(*observations: Observation) -> dict[str, Any]:
    """What lerobot-eval gives a policy's preprocessor."""
    pictures = np.stack([one.frames["top"] for one in observations])
    return {
        "observation.images.top": torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
        "observation.state": torch.from_numpy(np.stack([one.state for one in observations])),
        "task": [one.instruction for one in observations],
    }


def test_actions_are_those_of_the_core_bit_for_bit(tiny: Any, tmp_path: Path) -> None:
    """Of a run and of the checkpoint made from it, from the pictures on."""
    core = Policy.load(tiny.run)
    ours = convert(ConvertOptions(tiny.run, tmp_path / "out"))
    several = [observation(seed) for seed in range(3)]
    latent, context, state = core.plain.encode(*core.inputs(several))
    batch = seen(*several) | {"observation.state": state}
    with torch.no_grad():
        expected = core.model.act(latent, context, state)
    assert torch.equal(ours.predict_action_chunk(batch), expected)
    assert torch.equal(ours.model.act(latent, context, state), expected)


def test_a_converted_run_acts_the_same_through_lerobots_own_steps(tiny: Any, tmp_path: Path) -> None:
    """Normalisation is LeRobot's, in float32 where the core's is float64: equal to rounding."""
    convert(ConvertOptions(tiny.run, tmp_path / "out"))
    loaded = LightWAMPolicy.from_pretrained(tmp_path / "out")
    before, after = make_pre_post_processors(loaded.config, pretrained_path=str(tmp_path / "out"))
    several = [observation(seed) for seed in range(3)]
    got = after(loaded.predict_action_chunk(before(seen(*several))))
    np.testing.assert_allclose(got.numpy(), Policy.load(tiny.run).act_batch(several), rtol=0, atol=2e-6)
    with pytest.raises(CheckpointError, match="not empty"):
        convert(ConvertOptions(tiny.run, tmp_path / "out"))


def test_relative_actions_are_relative_to_the_state_that_began_the_chunk(tiny: Any, tmp_path: Path) -> None:
    """A run with one relative dimension: targets equal the core's to rounding, also later in a chunk."""
    base = run_directory.read_recipe(tiny.run)
    codec = replace(base.codec, relative_action_dims=(1,), state_norm="z_score", delta_action_dims=())
    train(replace(base, codec=codec), tiny.dataset, tmp_path / "run", say=lambda line: None, device="cpu")
    convert(ConvertOptions(tmp_path / "run", tmp_path / "out"))
    loaded = LightWAMPolicy.from_pretrained(tmp_path / "out")
    before, after = make_pre_post_processors(loaded.config, pretrained_path=str(tmp_path / "out"))
    several = [observation(seed) for seed in range(3)]
    expected = Policy.load(tmp_path / "run").act_batch(several)
    np.testing.assert_allclose(after(loaded.predict_action_chunk(before(seen(*several)))), expected, rtol=0, atol=2e-6)
    steps = [after(loaded.select_action(before(seen(one))))[0] for one in several]  # another state at every step
    np.testing.assert_allclose(np.stack(steps), expected[0, :3], rtol=0, atol=2e-6)
    with pytest.raises(ConfigError, match="relative actions"):
        loaded.train().forward({})
    with pytest.raises(ConfigError, match="relative actions"):
        policy(overrides={"codec.relative_action_dims": [0]})


def test_batches_and_losses_are_those_of_the_core(tiny: Any) -> None:
    """The windows of a dataset through LeRobot's loader, up to an episode's padded end, against our own loader's."""
    recipe = run_directory.read_recipe(tiny.run)
    cache, processing = open_training_data(recipe, tiny.dataset, tiny.run)
    loader = WindowLoader(cache, processing.codec, recipe.model.horizon, 1, 0)
    config = LightWAMConfig(recipe="point", device="cpu", measured=run_directory.read_processing(tiny.run)[1])
    whole = LeRobotDataset("local/point", tiny.dataset)
    deltas = {
        key: [i / whole.meta.fps for i in indices]
        for key, indices in (
            ("observation.images.top", config.observation_delta_indices),
            ("observation.state", config.observation_delta_indices),
            ("action", config.action_delta_indices),
        )
    }
    data = LeRobotDataset("local/point", tiny.dataset, delta_timestamps=deltas, video_backend="pyav")
    ours = make_policy(config, ds_meta=data.meta).train()
    before, _ = make_lightwam_pre_post_processors(ours.config, data.meta.stats)
    ends = np.cumsum(np.diff(cache.episode_start)) - 1
    for index in (0, 5, int(ends[0]) - 3, int(ends[1]), int(ends[-1])):
        item = torch.utils.data.default_collate([data[index]])
        got, expected = ours.windows(before(item)), processing.encode(loader.window(index))
        for name in ("present", "clip", "context", "is_token", "action_is_pad", "frame_is_pad"):
            assert torch.equal(getattr(got, name), getattr(expected, name)), (index, name)
        torch.testing.assert_close(got.state, expected.state, rtol=0, atol=1e-6)
        kept = ~expected.action_is_pad
        torch.testing.assert_close(got.action[kept], expected.action[kept], rtol=0, atol=1e-6)
        seed, step = ours.drawn.tolist()
        total, parts = ours.forward(before(item))
        losses = packed_loss(ours.model, expected, *flow_draw(seed, step, 1, expected.clip))
        torch.testing.assert_close(total, losses.total, rtol=1e-5, atol=1e-6)
        assert parts["loss_action"] == pytest.approx(losses.action.item(), rel=1e-4, abs=1e-6)
        assert parts["loss_video"] == pytest.approx(losses.video.item(), rel=1e-5)


@pytest.mark.parametrize("kind, mode", [("min_max", "MIN_MAX"), ("z_score", "MEAN_STD"), ("quantile", "QUANTILES")])
def test_lerobots_normalisation_is_the_codecs(kind: Any, mode: str) -> None:
    """Also of a dimension that never moves and of one that hardly ever does."""
    rows = np.random.default_rng(0).normal(2, 3, (3000, 2)).astype(np.float32)
    rows[:, 1] = 0.7
    rare = np.where(np.arange(3000) % 1000 == 0, 1.0, 0.0)
    action = np.stack([rows[:, 0], rare], 1).astype(np.float32)
    state_stats, action_stats = measure(rows), measure(action)
    made = policy(normalization_mapping={"STATE": NormalizationMode[mode], "ACTION": NormalizationMode[mode]})
    codec = Codec(replace(made.recipe.codec, state_norm=kind, action_norm=kind), state_stats, action_stats)
    stats = {"observation.state": state_stats.to_dict(), "action": action_stats.to_dict()}
    before, after = make_lightwam_pre_post_processors(made.config, stats)
    batch = before({"observation.state": torch.tensor(rows), "action": torch.tensor(action)})
    np.testing.assert_allclose(batch["observation.state"], codec.encode_state(rows), rtol=0, atol=2e-6)
    np.testing.assert_allclose(batch["action"], codec.encode_action(action), rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(after(batch["action"]), action, rtol=0, atol=5e-6)
    moved = torch.tensor([[2.0, 0.75]])  # a constant that is no longer one stays a small number
    assert before({"observation.state": moved})["observation.state"][0, 1] == pytest.approx(0.05, abs=1e-6)


def test_random_numbers_go_on_with_a_checkpoint(tmp_path: Path) -> None:
    """Training counts; looking at a validation loss does not."""
    made = policy().train()
    clip = seen(observation())
    clip["observation.images.top"] = clip["observation.images.top"][:, None].repeat(1, 5, 1, 1, 1)
    clip |= {"action": torch.zeros(1, 8, 2), "action_is_pad": torch.zeros(1, 8, dtype=torch.bool)}
    clip["observation.images.top_is_pad"] = torch.zeros(1, 5, dtype=torch.bool)
    first = made.forward(clip)[0]
    made.save_pretrained(tmp_path)
    second, held_out = made.forward(clip)[0], made.eval().forward(clip)[0]
    again = LightWAMPolicy.from_pretrained(tmp_path).train()
    assert torch.equal(again.forward(clip)[0], second) and not torch.equal(first, second)
    assert torch.equal(made.forward(clip)[0], held_out)


def test_the_number_of_a_draw_is_read_only_when_the_buffer_was_changed() -> None:
    class Buffer(torch.Tensor):
        reads = 0

        def tolist(self) -> list[int]:
            Buffer.reads += 1
            return super().tolist()

    drawn, count = torch.tensor([7, 3]).as_subclass(Buffer), DrawCount()
    assert [count.next(drawn, True) for _ in range(3)] == [(7, 3), (7, 4), (7, 5)] and Buffer.reads == 1
    assert count.next(drawn, False) == count.next(drawn, False) == (7, 6)
    drawn.copy_(torch.tensor([8, 0]))
    assert count.next(drawn, True) == (8, 0) and Buffer.reads == 2
    assert drawn.data.tolist() == [8, 1]


def test_each_sentence_is_encoded_once(tiny: Any) -> None:
    recipe = run_directory.read_recipe(tiny.run)
    encoder = Prompts(recipe, {})
    table, sentences = PromptTable(encoder), ["move to the red dot", "stop", "move to the red dot"]
    rows = table.rows(sentences)
    assert rows.tolist() == [0, 1, 0] and table.rows(["go", "stop"]).tolist() == [2, 1]
    assert torch.equal(table.context(rows, torch.device("cpu")), encoder.states(sentences))
    assert torch.equal(table.is_token[rows], encoder.states(sentences).any(dim=2))


def test_missing_statistics_are_named() -> None:
    stats = {"observation.state": {"min": [0, 0], "max": [1, 1]}, "action": {"min": [0, 0], "max": [1, 1]}}
    make_lightwam_pre_post_processors(policy().config, stats)
    quantiles = policy(normalization_mapping={"ACTION": NormalizationMode.QUANTILES})
    with pytest.raises(DatasetError, match="q01"):
        make_lightwam_pre_post_processors(quantiles.config, stats)


def test_a_chunk_is_executed_before_the_next_forward_pass() -> None:
    made = policy(n_action_steps=3)
    first, second = seen(observation(0)), seen(observation(1))
    chunk, other = made.predict_action_chunk(first), made.predict_action_chunk(second)
    assert chunk.shape == (1, 8, 2)
    assert torch.equal(made.select_action(first), chunk[:, 0])
    assert torch.equal(torch.stack([made.select_action(second) for _ in range(2)], 1), chunk[:, 1:3])
    assert torch.equal(made.select_action(second), other[:, 0])
    made.reset()
    assert torch.equal(made.select_action(first), chunk[:, 0])


def test_untrained_parts_are_not_exported() -> None:
    assert policy(supervised_prefix=5, n_action_steps=5).predict_action_chunk(seen(observation())).shape == (1, 5, 2)


def test_imagined_futures_are_the_cores(tiny: Any, tmp_path: Path) -> None:
    ours = convert(ConvertOptions(tiny.run, tmp_path / "out"))
    ours.config.save_predicted_video, ours.config.num_imagine_steps, ours.config.imagine_seed = True, 4, 7
    core, one = Policy.load(tiny.run), observation()
    batch = seen(one) | {"observation.state": core.inputs([one])[2]}
    ours.predict_action_chunk(batch)
    ours.predict_action_chunk(batch)
    latents = ours.last_predicted_latents
    expected = core.imagine(one, seed=7, num_steps=4)
    shown = ours.decode_predicted_latents(torch.cat([latents, latents], 2))
    assert latents.shape[:3] == (1, 8, 2) and shown.shape == (8, 32, 32, 3) and shown.dtype == torch.uint8
    np.testing.assert_array_equal(shown[:4], expected[[0, 0, 1, 1]])  # 4 steps executed, a frame every 2
    assert torch.equal(shown[:4], shown[4:])
    ours.reset()
    assert ours.last_predicted_latents is None
    with pytest.raises(ConfigError, match="of the present episode"):
        ours.decode_predicted_latents(latents)


def test_saving_and_loading_is_exact_and_strict(tmp_path: Path) -> None:
    made = policy()
    made.save_pretrained(tmp_path)
    again = LightWAMPolicy.from_pretrained(tmp_path)
    batch = seen(observation())
    assert torch.equal(again.predict_action_chunk(batch), made.predict_action_chunk(batch))
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights.pop("model.proprio_encoder.bias")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.proprio_encoder\.bias"):
        LightWAMPolicy.from_pretrained(tmp_path)


def test_latents_are_measured_on_the_first_training_batch_only() -> None:
    made = policy()
    made.config.measured = None
    batch = seen(observation(0), observation(1))
    with pytest.raises(ConfigError, match="never trained"):
        made.predict_action_chunk(batch)
    pixels = made.train().canvases(batch)
    z = made.latents(to_pixels(pixels)).encode(to_pixels(pixels))
    assert z.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-4 and (z.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-3
    first = made.config.measured
    made.latents(to_pixels(pixels) * 0.5)
    assert made.config.measured is first


def test_components_are_fitted_on_the_first_training_batch() -> None:
    made = policy()
    made.recipe = replace(made.recipe, latents=PcaConfig(8, 2))
    made.config.measured = None
    pixels = to_pixels(made.train().canvases(seen(observation(0), observation(1)))[:, :1].expand(-1, 5, -1, -1, -1))
    latents = made.latents(pixels)
    assert isinstance(latents, PcaLatents)
    assert torch.equal(
        latents.encode(pixels), PcaLatents.from_dict(PcaConfig(8, 2), made.config.measured).encode(pixels)
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"observation.images.top": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "images.top"),
        ({"observation.images.top": torch.zeros(1, 1, 32, 32)}, "images.top"),
        ({"observation.state": torch.full((1, 2), torch.nan)}, "finite"),
        ({"task": None}, "task"),
    ],
)
def test_odd_batches_are_refused(change: dict[str, Any], said: str) -> None:
    batch = {key: value for key, value in (seen(observation()) | change).items() if value is not None}
    with pytest.raises(WireError, match=said):
        policy().select_action(batch)


def test_a_clip_of_another_length_is_refused() -> None:
    with pytest.raises(WireError, match="frames"):
        policy().train().forward(seen(observation()))


def test_a_frozen_backbone_is_not_given_to_the_optimizer() -> None:
    made = policy(overrides={"model.backbone.frozen": True, "model.backbone.lora_rank": 2})
    trained = sum(parameter.numel() for parameter in made.get_optim_params())
    assert 0 < trained == sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    assert trained < sum(p.numel() for p in made.model.parameters())
