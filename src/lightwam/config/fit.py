"""A recipe for a robot: the settings that follow from a dataset's cameras, rate and numbers, and from the size.

Pure arithmetic on what `data/inspection` found, so that another tool, such as the LeRobot plugin, derives the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightwam.config.schema import POOL, CameraPlace, CodecConfig, HeldOutConfig, NormKind, Recipe, SourceConfig
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.errors import ConfigError, did_you_mean

VIDEO_HZ, CHUNK_S = 7.5, 1.0
"""about the video's frames a second, and the seconds of a chunk"""
REPLAN_TARGETS, REPLAN_MOTIONS = 0.25, 0.5
"""share of a chunk that is executed, of targets (docs/results/own_robot.md) and of motions"""
ONE_ROW = 3
"""more cameras than this stand in two rows"""
WIDTH_GRAIN = 16
HELD_OUT = HeldOutConfig(share=0.12, seed=0)
SPARE_TOKENS = 4
"""text tokens beyond the longest sentence, for a sentence that is said later"""
MIN_STEPS = 1000
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class RobotData:
    """What is known of a robot's dataset, as far as settings follow from it."""

    fps: float
    cameras: Mapping[str, tuple[int, int]]
    """camera -> height and width in pixels"""
    state_dim: int
    action_dim: int
    sentence_tokens: int
    """of the longest sentence, for the size's text encoder"""
    are_motions: bool
    """most actions are motions (0: stand still); False: numbers to reach"""
    motion_dims: tuple[int, ...] = ()
    relative_dims: tuple[int, ...] = ()
    """targets near the state of the same index, which are predicted relative to it"""
    outliers: bool = False
    """some values are far outside the usual range"""


def chunk_of(fps: float) -> tuple[int, int]:
    """Return the video stride and the horizon, in control steps: about 7.5 frames and one chunk a second.

    The horizon is a multiple of four strides (a latent frame), the nearest to one second.
    """
    stride = max(1, math.floor(fps / VIDEO_HZ + 0.5))
    grain = 4 * stride
    return stride, grain * max(1, math.floor(CHUNK_S * fps / grain + 0.5))


def replan_of(horizon: int, are_motions: bool) -> int:
    """Return how many steps of a chunk to execute."""
    return max(1, math.floor(horizon * (REPLAN_MOTIONS if are_motions else REPLAN_TARGETS)))


def place_cameras(
    sizes: Mapping[str, tuple[int, int]], height: int, grain: int = 32
) -> tuple[tuple[int, int], tuple[CameraPlace, ...]]:
    """Return the canvas, and a place for every camera that keeps the aspect of its (height, width).

    Every place has this height; up to three cameras stand in one row, more in two. Widths are rounded to 16 pixels, the
    canvas is padded to multiples of `grain` on the right and below.
    """
    names = list(sizes)
    split = len(names) if len(names) <= ONE_ROW else (len(names) + 1) // 2
    places: list[CameraPlace] = []
    for row, members in enumerate((names[:split], names[split:])):
        left = 0
        for name in members:
            tall, wide = sizes[name]
            width = WIDTH_GRAIN * max(1, math.floor(height * wide / tall / WIDTH_GRAIN + 0.5))
            places.append(CameraPlace(name, row * height, left, height, width))
            left += width
    bottom, right = max(p.top + p.height for p in places), max(p.left + p.width for p in places)
    return (_ceil_to(bottom, grain), _ceil_to(right, grain)), tuple(places)


def height_of(recipe: Recipe, sizes: Mapping[str, tuple[int, int]], heights: Sequence[int], max_tokens: int) -> int:
    """Return the first height with which the canvas of cameras of these sizes has at most `max_tokens`, or the last."""
    token = recipe.latents.spatial_stride * recipe.model.backbone.patch[1]
    for height in heights:
        canvas, _ = place_cameras(sizes, height, canvas_grain(recipe))
        if canvas[0] * canvas[1] <= max_tokens * token**2:
            return height
    return heights[-1]


def _ceil_to(value: int, grain: int) -> int:
    return -(-value // grain) * grain


def canvas_grain(recipe: Recipe) -> int:
    """Return the pixels that the sides of the canvas must be multiples of."""
    return recipe.latents.spatial_stride * POOL * max(recipe.model.backbone.patch[1:])


def placed(codec: CodecConfig, cameras: Sequence[str], size: tuple[int, int] | None = None) -> CodecConfig:
    """Return the codec with these cameras: at its own places if it has the same cameras, else side by side.

    `size` is the (height, width) of every place; by default that of the codec's first. A camera that the codec did not
    have gets no crop.
    """
    if size is None and {place.camera for place in codec.places} == set(cameras):
        return codec
    height, width = size or (codec.places[0].height, codec.places[0].width)
    places = tuple(CameraPlace(camera, 0, i * width, height, width) for i, camera in enumerate(cameras))
    return replace(codec, canvas=(height, width * len(places)), places=places)


def fitted(size: Recipe, data: RobotData, height: int, name: str, sources: tuple[SourceConfig, ...] = ()) -> Recipe:
    """Return the recipe `name` of this size for a robot, with places of this height; steps are the size's own."""
    stride, horizon = chunk_of(data.fps)
    canvas, places = place_cameras(data.cameras, height, canvas_grain(size))
    norm: NormKind = "quantile" if data.outliers else "min_max" if data.are_motions else "z_score"
    codec = replace(
        size.codec,
        canvas=canvas,
        places=places,
        video_stride=stride,
        state_norm=norm,
        action_norm=norm,
        delta_action_dims=data.motion_dims,
        relative_action_dims=data.relative_dims,
    )
    model = replace(
        size.model,
        state_dim=data.state_dim,
        action_dim=data.action_dim,
        horizon=horizon,
        supervised_prefix=horizon,
    )
    text = size.text
    if not text.pretrained:
        text = replace(text, num_tokens=max(text.min_tokens, data.sentence_tokens + SPARE_TOKENS))
    return replace(
        size,
        name=name,
        model=model,
        codec=codec,
        text=text,
        eval=replace(size.eval, replan=replan_of(horizon, data.are_motions)),
        sources=sources,
        held_out=HELD_OUT,
    )


def steps_of(num_windows: int, epochs: int, batch_size: int, step_seconds: float | None, hours: float) -> int:
    """Return the training steps: these passes over the windows, at least 1000 steps, but no more than fit `hours`."""
    steps = max(MIN_STEPS, math.ceil(epochs * num_windows / batch_size))
    if step_seconds is not None:
        steps = min(steps, max(1, int(3600 * hours / step_seconds)))
    return steps if steps < 100 else round(steps, -2)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with this number of training steps, and a warm-up and checkpoints that fit it."""
    train = recipe.train
    warmup, every = min(train.warmup_steps, max(1, steps // 20)), min(train.save_every, max(1, steps // 4))
    return replace(recipe, train=replace(train, steps=steps, warmup_steps=warmup, save_every=every))


def with_settings(recipe: Recipe, settings: Mapping[str, tuple[str, Any]], where: str = "policy") -> Recipe:
    """Return the recipe with the settings (origin -> dotted name, value); ConfigError for an unknown name."""
    data = to_dict(recipe)
    for origin, (name, value) in settings.items():
        *sections, last = name.split(".")
        table = data
        for section in sections:
            table = table.get(section) if isinstance(table, dict) else None
        if not isinstance(table, dict) or last not in table:
            raise ConfigError("unknown setting", where=origin, got=name, next_step=did_you_mean(name, _names(data)))
        table[last] = value
    return from_dict(Recipe, data, where)


def _names(data: Any, above: str = "") -> Iterator[str]:
    for name, value in data.items():
        yield above + name
        if isinstance(value, dict):
            yield from _names(value, f"{above}{name}.")


def inherited(base: Recipe, recipe: Recipe, given: Collection[str]) -> Recipe:
    """Return `recipe`, which options changed from `base`, without settings that belong to another robot.

    `given`: the dotted names that were changed on purpose. A prefix that was the whole chunk follows the horizon; a
    crop follows its camera's name. ConfigError for a crop of another camera, and for dimensions of motion of a robot
    with another number of actions.
    """
    model, codec = recipe.model, recipe.codec
    whole = base.model.supervised_prefix == base.model.horizon != model.horizon
    if whole and "model.supervised_prefix" not in given:
        model = replace(model, supervised_prefix=model.horizon)
    for name in ("delta_action_dims", "relative_action_dims"):
        dims = getattr(codec, name)
        if dims and model.action_dim != base.model.action_dim and f"codec.{name}" not in given:
            setting = f"codec.{name}".replace("_", "-")
            option = f"--{setting}"
            what = f"codec.{name} must be set for a robot of {model.action_dim} actions"
            step = f"{option} with this robot's dimensions; {option} alone: none"
            got = f"{dims}, of the {base.model.action_dim} actions of {base.name}"
            raise ConfigError(what, got=got, next_step=step)
    crops = {place.camera: place.crop for place in base.codec.places}
    places = []
    for i, place in enumerate(codec.places):
        old = base.codec.places[i] if i < len(base.codec.places) else None
        if old is not None and place.camera != old.camera and f"codec.places.{i}.crop" not in given:
            if place.camera not in crops and old.crop != WHOLE:
                setting, what = f"codec.places.{i}.crop", f"a crop must belong to its camera, {old.camera}"
                where, step = f"codec.places {place.camera}", f"--{setting} 0 0 1 1: the whole picture; or its own crop"
                raise ConfigError(what, where=where, got=old.crop, next_step=step)
            place = replace(place, crop=crops.get(place.camera, WHOLE))
        places.append(place)
    return replace(recipe, model=model, codec=replace(codec, places=tuple(places)))
