"""LeRobot's own commands, really run: train, go on, evaluate, with pictures of what was imagined."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from lerobot.policies import make_pre_post_processors

from commands import command
from lerobot_policy_lightwam import LightWAMPolicy
from lerobot_policy_lightwam.convert import ConvertOptions, convert
from lightwam.sim.point import PointSimulator

pytestmark = pytest.mark.slow
STEPS = 120


def losses(said: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"\bloss:([\d.]+)", said)]


def train(dataset: Path, out: Path, steps: int, log_every: int) -> str:
    return command(
        "lerobot-train",
        *("--policy.type=lightwam", "--policy.recipe=point", "--policy.device=cpu", "--policy.push_to_hub=false"),
        *("--policy.scheduler_warmup_steps=5", "--policy.save_predicted_video=true", "--policy.num_imagine_steps=4"),
        *("--dataset.repo_id=local/point", f"--dataset.root={dataset}", "--dataset.video_backend=pyav"),
        *(f"--output_dir={out}", f"--steps={steps}", f"--save_freq={steps // 2}", f"--log_freq={log_every}"),
        *("--batch_size=16", "--num_workers=0", "--env_eval_freq=0", "--wandb.enable=false"),
    )


@pytest.fixture(scope="module")
def trained(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("lerobot") / "out"
    return out, train(tiny.dataset, out, STEPS, 10)


def test_the_loss_goes_down(trained: tuple[Path, str]) -> None:
    curve = losses(trained[1])
    assert len(curve) == STEPS // 10
    assert sum(curve[-3:]) < 0.6 * sum(curve[:3]), curve


def test_training_resumes_from_a_checkpoint(tiny: Any, tmp_path: Path) -> None:
    """Every loss comes out as if it had never stopped, here within one round of the data.

    Later LeRobot 0.6.1 itself goes on in another order of the data than the run that was not stopped.
    """
    first = train(tiny.dataset, tmp_path / "out", 8, 1)
    middle = tmp_path / "out" / "checkpoints" / "000004" / "pretrained_model"
    again = command("lerobot-train", f"--config_path={middle}/train_config.json", "--resume=true")
    assert len(losses(first)) == 8 and losses(again) == losses(first)[4:]


def test_lerobot_eval_drives_the_policy(trained: tuple[Path, str], tmp_path: Path) -> None:
    last = trained[0] / "checkpoints" / "last" / "pretrained_model"
    command(
        "lerobot-eval", f"--policy.path={last}", "--policy.device=cpu", "--env.type=lightwam", "--env.recipe=point",
        "--env.task=blue", "--eval.n_episodes=4", "--eval.batch_size=2", f"--output_dir={tmp_path}", "--seed=5",
    )  # fmt: skip
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 4 and 0 <= info["overall"]["pc_success"] <= 100
    imagined = sorted((tmp_path / "videos").rglob("pred_episode_*.mp4"))
    assert len(imagined) == 2, "one a batch of environments"
    with av.open(str(imagined[0])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) % 4 == 0 and frames[0].shape == (32, 32, 3), "4 steps of each chunk are executed"
    seen = first_picture(seed=5, task="blue")
    assert abs(frames[0].astype(float) - seen).mean() < 25, "an imagined future begins with what is there"


def first_picture(seed: int, task: str) -> Any:
    from lightwam.config.recipes import point

    simulator = PointSimulator(point().sim, task)
    simulator.reset(point().eval.first_seed + seed)
    return simulator.observe().frames["top"]


def test_a_checkpoint_is_saved_and_loaded(trained: tuple[Path, str]) -> None:
    """Weights, latents' statistics and normalisation all come from it, and no dataset is needed."""
    last = trained[0] / "checkpoints" / "last" / "pretrained_model"
    policy = LightWAMPolicy.from_pretrained(last)
    assert policy.config.measured is not None
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(last))
    picture = torch.from_numpy(first_picture(3, "red")).permute(2, 0, 1).float() / 255
    one = {"observation.images.top": picture, "observation.state": torch.zeros(2), "task": "move to the red dot"}
    action = after(policy.select_action(before(one)))
    latent, context, state = expected_inputs(policy, before(one))
    with torch.no_grad():
        expected = policy.model.act(latent, context, state)
    assert torch.equal(action, after(expected[:, 0])) and action.shape == (1, 2)


def expected_inputs(policy: LightWAMPolicy, batch: dict[str, Any]) -> Any:
    """By the core's functions alone."""
    from lightwam.data.codec import compose_canvas
    from lightwam.encoders.dct import DctLatents
    from lightwam.encoders.hashed_text import HashedText
    from lightwam.types import to_pixels

    picture = first_picture(3, "red")[None]
    canvas = compose_canvas(policy.recipe.codec, {"top": picture})
    latents = DctLatents.from_dict(policy.recipe.latents, policy.config.measured)
    context = HashedText(policy.recipe.text).encode(["move to the red dot"])
    return latents.encode(to_pixels(canvas[:, None])), context, batch["observation.state"]


def test_a_converted_run_is_evaluated(tiny: Any, tmp_path: Path) -> None:
    """One episode of each of the recipe's tasks."""
    convert(ConvertOptions(tiny.run, tmp_path / "policy"))
    command(
        "lerobot-eval", f"--policy.path={tmp_path}/policy", "--policy.device=cpu", "--env.type=lightwam",
        "--env.recipe=point", "--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path}/eval",
    )  # fmt: skip
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert {task: group["n_episodes"] for task, group in info["per_group"].items()} == {"red": 1, "blue": 1}
