"""Robot data <-> model arrays: cameras onto one canvas, state and actions to about [-1, 1], and back.

Training, evaluation and serving use the same codec, which is saved in the run, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from lightwam.config.schema import CameraPlace, CodecConfig, NormKind
from lightwam.config.strict_json import added, from_dict, to_dict
from lightwam.data.statistics import FeatureStats, measure, measure_offsets
from lightwam.errors import ConfigError, WireError, did_you_mean

CONSTANT_SPAN = 1e-6
"""a dimension is constant if its range is within this share of its magnitude (8 steps of float32)"""
RARE_SPAN = 2e-3
"""q01 and q99 coincide if they are nearer than this share of min..max (older runs measured them less exactly)"""


class Codec:
    """The conversion between one robot's data and model arrays.

    `state` and `action` are the statistics of the training data, in robot units. Normalisation is affine and is never
    clipped, so decoding is the inverse of encoding (up to float32 rounding).

    In `config.relative_action_dims` the model's action is the target minus the state at the chunk's start, normalised
    with the statistics `relative` of its step in the chunk (`measure_offsets`), which have these dims in this order;
    later steps have those of the last. Robot data are targets.
    """

    def __init__(
        self,
        config: CodecConfig,
        state: FeatureStats,
        action: FeatureStats,
        relative: Sequence[FeatureStats] = (),
    ) -> None:
        self.config, self.state, self.action, self.relative = config, state, action, tuple(relative)
        if bad := [dim for dim in config.delta_action_dims if not 0 <= dim < action.dim]:
            raise ConfigError(f"codec.delta_action_dims must be in 0..{action.dim - 1}", got=bad)
        self._relative_dims = _check_relative_dims(config, state.dim, action.dim)
        known = {stats.dim for stats in self.relative} or {0}
        if known != {len(self._relative_dims)}:
            what = "a codec must have statistics of its relative dims"
            raise ConfigError(what, where="codec.relative", got=f"{known} dims", expected=self._relative_dims)
        self._state_affine = affine(config.state_norm, state)
        offset, scale = affine(config.action_norm, action)
        if self.relative:
            steps = [affine(config.action_norm, stats) for stats in self.relative]
            offset, scale = (np.tile(values, (len(steps), 1)) for values in (offset, scale))
            for step, (offset_here, scale_here) in enumerate(steps):
                offset[step, self._relative_dims], scale[step, self._relative_dims] = offset_here, scale_here
        self._action_affine = offset, scale

    @classmethod
    def fit(
        cls,
        config: CodecConfig,
        state: Float32[np.ndarray, "N P"],
        action: Float32[np.ndarray, "N A"],
        episode_start: Int64[np.ndarray, " episodes_and_1"],
        horizon: int,
    ) -> Codec:
        """Measure the statistics of a dataset's rows, in robot units; relative dims over windows of `horizon` steps."""
        relative: tuple[FeatureStats, ...] = ()
        if dims := _check_relative_dims(config, state.shape[1], action.shape[1]):
            relative = measure_offsets(action[:, dims], state[:, dims], episode_start, horizon)
        return cls(config, measure(state), measure(action), relative)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras on the canvas."""
        return tuple(place.camera for place in self.config.places)

    def canvas(self, frames: Mapping[str, Any]) -> UInt8[np.ndarray, "height width 3"]:
        """Compose one moment's pictures (camera -> uint8 [h, w, 3] RGB); cameras without a place are ignored.

        WireError naming a camera that is missing or whose picture is not uint8 [h, w, 3].
        """
        for place in self.config.places:
            _check_picture(frames, place.camera)
        return compose_canvas(self.config, {name: frames[name][None] for name in self.cameras})[0].numpy()

    def encode_state(self, state: Any) -> Float32[np.ndarray, "*lead P"]:
        """Normalise floats [..., P] in robot units; WireError when width or dtype is wrong or a value is not finite."""
        offset, scale = self._state_affine
        return ((_checked(state, len(offset), "state") - offset) / scale).astype(np.float32)

    def encode_action(self, action: Any, state: Any = None) -> Float32[np.ndarray, "*lead A"]:
        """Normalise floats [..., A] in robot units; WireError as for `encode_state`.

        With relative dims, chunks [..., H, A] and the state [..., P] at the start of each, in robot units too.
        """
        values = _checked(action, self.action.dim, "action")
        offset, scale = self._affine_of(values)
        if self._relative_dims:
            values = values.astype(np.float64)
            values[..., self._relative_dims] -= self._origin(state)
        return ((values - offset) / scale).astype(np.float32)

    def decode_action(
        self, action: Float32[np.ndarray, "*lead A"], state: Any = None
    ) -> Float32[np.ndarray, "*lead A"]:
        """Convert normalised actions to robot units: the inverse of `encode_action`, with the same `state`."""
        offset, scale = self._affine_of(action)
        values = action * scale + offset
        if self._relative_dims:
            values[..., self._relative_dims] += self._origin(state)
        return values.astype(np.float32)

    def _affine_of(self, action: np.ndarray) -> Affine:
        """Return offset and scale of actions [..., A]; of chunks [..., H, A] with relative dims, those of each step."""
        if not self.relative:
            return self._action_affine
        step = np.minimum(np.arange(action.shape[-2] if action.ndim > 1 else 1), len(self.relative) - 1)
        offset, scale = (values[step] for values in self._action_affine)
        return offset, scale

    def _origin(self, state: Any) -> Float64[np.ndarray, "*lead 1 R"]:
        """Return what a chunk's relative actions are relative to."""
        if state is None:
            what, dims = "relative actions need the state at the chunk's start", self._relative_dims
            raise WireError(what, where="state", got=None, expected=f"the state, for action dims {dims}")
        return _checked(state, self.state.dim, "state")[..., None, self._relative_dims].astype(np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values from which `from_dict` makes an equal codec."""
        data = {"config": to_dict(self.config), "state": self.state.to_dict(), "action": self.action.to_dict()}
        return data | ({"relative": [stats.to_dict() for stats in self.relative]} if self.relative else {})

    @classmethod
    def from_dict(cls, data: Any, where: str = "codec") -> Codec:
        """Read `to_dict`'s values; ConfigError when a key is unknown, missing or mistyped."""
        stored: Any = from_dict(_Stored, data, where)
        state, action = (
            FeatureStats.from_dict(getattr(stored, name), f"{where}.{name}") for name in ("state", "action")
        )
        steps = [FeatureStats.from_dict(part, f"{where}.relative[{i}]") for i, part in enumerate(stored.relative)]
        return cls(stored.config, state, action, steps)


_Stored = make_dataclass(
    "Codec", [("config", CodecConfig), ("state", Any), ("action", Any), ("relative", tuple[Any, ...], added(()))]
)
"""the JSON form; without relative dims, and in older files, `relative` is missing"""


def _check_relative_dims(config: CodecConfig, state_dim: int, action_dim: int) -> list[int]:
    """Return the relative dims; ConfigError unless state and action have them."""
    dims, least = list(config.relative_action_dims), min(state_dim, action_dim)
    if bad := [dim for dim in dims if not 0 <= dim < least]:
        what = "codec.relative_action_dims must be dims of state and action"
        raise ConfigError(what, got=bad, expected=f"0 to {least - 1}" if least else "none, as there is no state")
    return dims


def to_pictures(pixels: Float[Tensor, "B 3 F height width"]) -> UInt8[np.ndarray, "B F height width 3"]:
    """Convert model input in [-1, 1] to uint8 canvases, rounded and clipped: the inverse of `types.to_pixels`."""
    raw = pixels.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return raw.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()


def compose_canvas(
    config: CodecConfig, clips: Mapping[str, UInt8[np.ndarray, "T _h _w 3"] | UInt8[Tensor, "T _h _w 3"]]
) -> UInt8[Tensor, "T height width 3"]:
    """Compose the clips of all cameras into a clip of canvases: crop each picture, then resize it (antialiased).

    A picture that already has its place's size is copied. What no place covers stays black. The canvases are on the
    clips' device.
    """
    tensors = {place.camera: _tensor(clips[place.camera]) for place in config.places}
    first = tensors[config.places[0].camera]
    canvas = first.new_zeros((len(first), *config.canvas, 3))
    for place in config.places:
        rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
        canvas[:, rows, columns] = _resized(_cropped(tensors[place.camera], place), place)
    return canvas


def _tensor(clip: np.ndarray | Tensor) -> Tensor:
    """Share the clip's memory, or copy an array that is read-only or not contiguous, which torch cannot share."""
    if isinstance(clip, Tensor):
        return clip
    shared = clip.flags.c_contiguous and clip.flags.writeable
    return torch.from_numpy(clip if shared else np.array(clip, order="C"))


def _cropped(clip: UInt8[Tensor, "T _h _w 3"], place: CameraPlace) -> UInt8[Tensor, "T _ch _cw 3"]:
    height, width = clip.shape[1:3]
    top, left, bottom, right = place.crop
    rows = slice(round(top * height), max(round(bottom * height), round(top * height) + 1))
    return clip[:, rows, round(left * width) : max(round(right * width), round(left * width) + 1)]


def _resized(clip: UInt8[Tensor, "T _h _w 3"], place: CameraPlace) -> UInt8[Tensor, "T _ph _pw 3"]:
    if clip.shape[1:3] == (place.height, place.width):
        return clip
    pictures = clip.contiguous().permute(0, 3, 1, 2).float()
    size = place.height, place.width
    sized = functional.interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=True)
    return sized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _check_picture(frames: Mapping[str, Any], camera: str) -> None:
    if camera not in frames:
        where, step = "observation.frames", did_you_mean(camera, frames)
        raise WireError("a camera is missing", where=where, got=sorted(frames), expected=camera, next_step=step)
    picture, where = frames[camera], f"camera {camera!r}"
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        got = picture.dtype if isinstance(picture, np.ndarray) else type(picture).__name__
        raise WireError("a picture is not uint8", where=where, got=got, expected="uint8 RGB in 0..255")
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise WireError("a picture must have the shape (height, width, 3)", where=where, got=picture.shape)


Affine = tuple[Float64[np.ndarray, "*steps D"], Float64[np.ndarray, "*steps D"]]


def affine(kind: NormKind, stats: FeatureStats) -> Affine:
    """Return offset and scale of `normalised = (value - offset) / scale`.

    A constant dimension (range within CONSTANT_SPAN of its magnitude) has offset = its value and scale 1: it becomes 0,
    and a later value keeps its distance in robot units. Under "quantile", a dimension whose q01 and q99 coincide though
    it varies (a gripper that is hardly ever open) is scaled by its min..max.
    """
    if kind == "identity":
        return np.zeros(stats.dim), np.ones(stats.dim)
    if kind == "z_score":
        offset, scale = stats.mean, stats.std
    else:
        low, high = (stats.q01, stats.q99) if kind == "quantile" else (stats.min, stats.max)
        flat = high - low <= RARE_SPAN * (stats.max - stats.min)
        low, high = np.where(flat, stats.min, low), np.where(flat, stats.max, high)
        offset, scale = (low + high) / 2, (high - low) / 2
    constant = stats.max - stats.min <= CONSTANT_SPAN * np.maximum(np.abs(stats.min), np.abs(stats.max))
    return np.where(constant, stats.min, offset), np.where(constant, 1.0, scale)


def _checked(values: Any, width: int, name: str) -> Float[np.ndarray, "*lead D"]:
    """Return the values; WireError unless they are finite floats [..., width]."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        got = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise WireError(f"the {name} is not an array of floats", where=name, got=got, expected="float32")
    if values.ndim < 1 or values.shape[-1] != width:
        raise WireError(f"the {name} must have the width {width}", where=name, got=values.shape)
    if not np.isfinite(values).all():
        bad = sorted(set(np.argwhere(~np.isfinite(values))[:, -1].tolist()))
        raise WireError(f"the {name} is not finite", where=f"{name} dims {bad}", got="NaN or inf", expected="finite")
    return values
