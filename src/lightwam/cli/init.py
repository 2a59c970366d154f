"""`lightwam init`: a recipe for a dataset, with the reasons, and a picture of what the model will see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lightwam.cli.options import DeviceOptions, NamesOptions, parse
from lightwam.cli.show import count, duration, size
from lightwam.errors import ConfigError, first_few

if TYPE_CHECKING:
    from lightwam.data.inspection.inspect import Inspection
    from lightwam.data.lerobot.reader import LeRobotDataset
    from lightwam.training.new_recipe import NewRecipe


@dataclass(frozen=True, kw_only=True)
class InitOptions(NamesOptions, DeviceOptions):
    """Look at a LeRobot dataset and write a recipe file for it, with the reasons, and a picture of what the model sees.

    DATASET is a folder or a Hub id. What looks wrong in the dataset is printed, too.
    """

    dataset: Annotated[str, tyro.conf.Positional]
    to: Path | None = None
    """the recipe file; default: the dataset's name and .toml, here"""
    size: Literal["auto", "small", "base", "paper"] = "auto"
    """auto: small, or base on a GPU of 20 GB and more"""
    hours: float | None = None
    """of training, at most; default: the size's (small 1, base 4, paper 20)"""
    cameras: tuple[str, ...] = ()
    """the cameras to use, from left to right; default: all"""
    height: int | None = None
    """of each camera's picture on the canvas, in pixels; default: the size's (small 96, base 128, paper 224), less for
    many cameras"""
    actions: Literal["auto", "targets", "positions", "motions"] = "auto"
    """what the actions are: targets of the state's numbers, other positions, or motions (0: stand still)"""
    relative: Literal["auto", "yes", "no"] = "auto"
    """predict targets relative to the state at the chunk's start; default: if they are near the state"""
    weights: str = ""
    """where Wan2.1 is, for --size paper"""
    overwrite: bool = False
    """replace the recipe file"""


def run(arguments: Sequence[str]) -> None:
    """`lightwam init DATASET [--to FILE.toml] [OPTIONS]`."""
    options = parse(InitOptions, arguments or ["--help"], "init")
    from lightwam.system.progress import Progress
    from lightwam.training.new_recipe import Wishes, new_recipe, open_dataset, source_of, write_new_recipe

    path = options.to or Path(Path(options.dataset.partition("@")[0]).name + ".toml")
    if path.suffix != ".toml":
        raise ConfigError("a recipe file must end in .toml", where="--to", got=path, next_step=f"--to {path}.toml")
    if path.exists() and not options.overwrite:
        raise ConfigError("there is such a recipe already", where=path, next_step="--overwrite, or another --to")
    data, guessed = open_dataset(options.dataset, options.names, options.cameras)
    if guessed:
        print(f"{options.dataset}: features with other names, read as --names {' '.join(guessed)}")
    wishes = Wishes(
        options.size,
        options.cameras,
        options.height,
        None if options.actions == "auto" else options.actions,
        None if options.relative == "auto" else options.relative == "yes",
        options.hours,
        options.weights,
    )
    with Progress("look", unit="picture") as progress:
        source = source_of(options.dataset, data, path.parent)
        made = new_recipe(data, path.stem, source, wishes, device=options.device, progress=progress.update)
    print("\n".join(dataset_lines(options.dataset, data, made)))
    picture = path.with_suffix(".png")
    about = (
        f"{path.name}: `lightwam init {options.dataset}` wrote it; change what you like, then `lightwam train {path}`"
    )
    write_new_recipe(made, path, picture, "\n".join([about, *header_lines(data, made), *SIZES_HINT]))
    print("\n".join([f"{path}  written; what the model sees: {picture}", *recipe_lines(made)]))
    print(f"next: lightwam train {path}")


SIZES_HINT = ("Only settings that differ from base are here; `lightwam show FILE` prints sizes, memory and hours.",)


def header_lines(data: LeRobotDataset, made: NewRecipe) -> Iterator[str]:
    """Yield what the recipe file says of its dataset."""
    seconds = data.num_frames / data.fps
    yield (
        f"{data.robot_type}, {data.num_episodes} episodes, {data.num_frames:,} frames at {data.fps:g} fps "
        f"({seconds / 60:.1f} min)"
    )
    yield from (f"looks wrong: {problem}" for problem in made.inspection.problems)


def dataset_lines(name: str, data: LeRobotDataset, made: NewRecipe) -> Iterator[str]:
    """Yield what was found in the dataset."""
    from lightwam.data.inspection.sentences import short

    found, megabytes = made.inspection, data.num_bytes() / 1e6
    yield (
        f"{name}  LeRobot {data.version}, {data.robot_type}, {data.num_episodes} episodes, {data.num_frames:,} frames "
        f"at {data.fps:g} fps ({data.num_frames / data.fps / 60:.1f} min), {megabytes:,.0f} MB"
    )
    yield "  " + first_few([f'"{short(sentence)}" {number}' for sentence, number in found.sentences.items()], 4)
    yield "  " + ", ".join(f"{camera} {height}x{width}" for camera, (height, width) in data.cameras.items())
    if left := [f"{camera} ({why.reason.what})" for camera, why in data.left_out.items()]:
        yield f"  left out: {', '.join(left)}"
    yield f"  {_actions(data, found)}"
    if found.grippers:
        yield f"  gripper: {found.grippers}"
    for problem in found.problems:
        yield f"  looks wrong: {problem}"


def _actions(data: LeRobotDataset, found: Inspection) -> str:
    names = data.action_names
    listed = " ".join(names) if len(names) < 4 else f"{names[0]} … {names[-1]}"
    same = ", same names" if names == data.state_names else ""
    unit = f" in {found.action_unit}" if found.action_unit else ""
    words = {
        "targets": f"absolute targets{unit}",
        "positions": "absolute numbers that the state does not have at the same place",
        "motions": "motions (0: stand still)",
    }[found.kind]
    if found.lead_steps:
        words += f", which lead the state by {found.lead_steps} steps"
    return f"action {data.action_dim} ({listed}), state {data.state_dim}{same}: {words}"


def recipe_lines(made: NewRecipe) -> Iterator[str]:
    """Yield the settings that were derived, and why."""
    recipe, fps = made.recipe, made.data.fps
    horizon, replan, (height, width) = recipe.model.horizon, recipe.eval.replan, recipe.codec.canvas
    yield (
        f"  chunk     {horizon} steps = {horizon / fps:.2f} s, video every {recipe.codec.video_stride} steps, "
        f"replan after {replan} = {replan / fps:.2f} s"
    )
    places = ", ".join(f"{place.camera} {place.height}x{place.width}" for place in recipe.codec.places)
    yield f"  cameras   {places}: canvas {height}x{width}, {made.num_tokens} tokens"
    yield f"  actions   {_handling(made)}"
    listed = f"{first_few([*map(str, made.held_out)], 8)} (seed {recipe.held_out.seed})"
    held_out = f"{len(made.held_out)} episodes to measure the error on: {listed}"
    yield f"  held out  {held_out if made.held_out else 'none: there are too few episodes'}"
    time = "not timed here" if made.hours is None else f"about {duration(made.hours)} here"
    yield (
        f"  size      {made.base.name}: {count(made.parameters)} parameters, {recipe.train.steps:,} steps of "
        f"{recipe.train.batch_size}, {time}; {size(made.memory_bytes)} of memory a step"
    )
    for other in made.other_sizes():
        needs = ", needs Wan2.1" if other.pretrained else ""
        time = f"about {duration(other.hours)} on a GPU of 24 GB, calculated"
        yield f"            --size {other.name}: {count(other.parameters)}, {time}{needs}"


def _handling(made: NewRecipe) -> str:
    codec, names = made.recipe.codec, made.data.action_names
    parts = {
        "relative to the state at the chunk's start": codec.relative_action_dims,
        "motions": codec.delta_action_dims,
    }
    used = {*codec.relative_action_dims, *codec.delta_action_dims}
    parts["absolute"] = tuple(dim for dim in range(len(names)) if dim not in used)
    named = {words: [names[dim] for dim in dims] for words, dims in parts.items() if dims}
    return "; ".join(f"{words}: {', '.join(listed)}" for words, listed in named.items())
