"""`lightwam-to-lerobot RUN OUT`: a run of `lightwam train` as a checkpoint for LeRobot's commands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_policy_lightwam.configuration_lightwam import LightWAMConfig
from lerobot_policy_lightwam.modeling_lightwam import LightWAMPolicy
from lerobot_policy_lightwam.processor_lightwam import make_lightwam_pre_post_processors
from lightwam import CheckpointError, LightwamError
from lightwam.config.schema import Recipe
from lightwam.config.strict_json import to_dict
from lightwam.data.facts import DatasetFacts
from lightwam.policy import run_directory
from lightwam.system.files import explain_disk_errors


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a run of lightwam's to a checkpoint of LeRobot's; both act the same."""

    run: Annotated[Path, tyro.conf.Positional]
    """a run directory"""
    out: Annotated[Path, tyro.conf.Positional]
    """a new folder, for --policy.path"""
    step: int | None = None
    """the checkpoint; by default the best on held-out episodes, or the newest if none are held out"""
    ema: bool = True
    """the average of the weights, if training kept one"""


def convert(options: ConvertOptions) -> LightWAMPolicy:
    """Write the checkpoint atomically, and return the policy.

    CheckpointError if the run is damaged, `out` is not empty, or the disk is full. The token states of the run's
    prompts are not converted: a pretrained text encoder is opened when it is needed.
    """
    run, out = options.run, options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError("the output folder is not empty", where=out, expected="a new folder")
    recipe = run_directory.read_recipe(run)
    codec, measured = run_directory.read_processing(run)
    facts = run_directory.read_facts(run)
    sizes = picture_sizes(recipe, facts)
    inputs = {f"{OBS_IMAGES}.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for name, size in sizes.items()}
    inputs[OBS_STATE] = PolicyFeature(FeatureType.STATE, (recipe.model.state_dim,))
    config = LightWAMConfig(
        recipe=recipe.name,
        input_features=inputs,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (recipe.model.action_dim,))},
        settled=to_dict(replace(recipe, codec=codec.config)),
        measured=measured,
        facts=facts and facts.to_dict(),
        action_feature_names=list(facts.action_names) if facts else None,
        relative=codec.to_dict() if codec.relative else None,
        device="cpu",
    )
    policy = LightWAMPolicy(config)
    saved = run_directory.load(run, options.step, training=False)
    run_directory.load_strict(policy.model, run_directory.run_weights(run, saved, ema=options.ema), run)
    stats = {OBS_STATE: codec.state.to_dict(), ACTION: codec.action.to_dict()}
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with explain_disk_errors(out):
            policy.save_pretrained(temporary)
            for processor in make_lightwam_pre_post_processors(config, stats):
                processor.save_pretrained(temporary)
            temporary.replace(out)  # an empty folder may be there
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return policy.eval()


def picture_sizes(recipe: Recipe, facts: DatasetFacts | None) -> dict[str, tuple[int, int]]:
    """Return height and width of each camera's pictures: the dataset's, in older runs the simulator's."""
    sizes = {place.camera: (place.height, place.width) for place in recipe.codec.places}
    if facts is not None:
        return {camera: facts.cameras.get(camera, size) for camera, size in sizes.items()}
    return dict.fromkeys(sizes, (recipe.simulation.height, recipe.simulation.width))


def main() -> None:
    """Run the command."""
    try:
        options = tyro.cli(ConvertOptions, prog="lightwam-to-lerobot")
        policy = convert(options)
    except LightwamError as error:
        sys.exit(f"lightwam-to-lerobot: {error}")
    print(f"{options.out}: for --policy.path of LeRobot's commands")
    if policy.config.facts is not None:
        print(rollout_command(options.out, DatasetFacts.from_dict(policy.config.facts)))


def rollout_command(policy: Path, facts: DatasetFacts) -> str:
    """Return the command that drives a robot like the dataset's; what the dataset does not know is in capitals."""
    fps, sentence = round(facts.fps), next(iter(facts.sentences), "SENTENCE")
    cameras = ", ".join(
        f"{name}: {{type: opencv, index_or_path: NUMBER, width: {width}, height: {height}, fps: {fps}}}"
        for name, (height, width) in facts.cameras.items()
    )
    values = {"policy.path": policy, "fps": fps, "task": sentence, "robot.type": "TYPE", "robot.port": "PORT"}
    words = [f"--{name}={shlex.quote(str(value))}" for name, value in values.items()]
    return " \\\n  ".join(
        [f"lerobot-rollout {' '.join(words[:3])}", " ".join(words[3:]), f"--robot.cameras='{{{cameras}}}'"]
    )
