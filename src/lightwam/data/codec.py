"""Robot data <-> model arrays: cameras onto one canvas, state and actions to about [-1, 1], and back.

Training, evaluation and serving use the same codec, which is saved in the run, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import make_dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from lightwam.config.schema import CameraPlace, CodecConfig, NormKind
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.data.statistics import FeatureStats
from lightwam.errors import ConfigError, WireError, did_you_mean

CONSTANT_SPAN = 1e-6
"""a dimension is constant if its range is within this share of its magnitude (8 steps of float32)"""
RARE_SPAN = 2e-3
"""q01 and q99 coincide if they are nearer than this share of min..max (older runs measured them less exactly)"""


class Codec:
    """The conversion between one robot's data and model arrays.

    `state` and `action` are the statistics of the training data, in robot units. Normalisation is affine and is never
    clipped, so decoding is the inverse of encoding (up to float32 rounding).
    """

    def __init__(self, config: CodecConfig, state: FeatureStats, action: FeatureStats) -> None:
        self.config, self.state, self.action = config, state, action
        self._state_affine = affine(config.state_norm, state)
        self._action_affine = affine(config.action_norm, action)
        if bad := [dim for dim in config.delta_action_dims if not 0 <= dim < action.dim]:
            raise ConfigError(f"codec.delta_action_dims must be in 0..{action.dim - 1}", got=bad)

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
        return _encode(state, self._state_affine, "state")

    def encode_action(self, action: Any) -> Float32[np.ndarray, "*lead A"]:
        """Normalise floats [..., A] in robot units; WireError as for `encode_state`."""
        return _encode(action, self._action_affine, "action")

    def decode_action(self, action: Float32[np.ndarray, "*lead A"]) -> Float32[np.ndarray, "*lead A"]:
        """Convert normalised actions to robot units."""
        offset, scale = self._action_affine
        return (action * scale + offset).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values from which `from_dict` makes an equal codec."""
        return {"config": to_dict(self.config), "state": self.state.to_dict(), "action": self.action.to_dict()}

    @classmethod
    def from_dict(cls, data: Any, where: str = "codec") -> Codec:
        """Read `to_dict`'s values; ConfigError when a key is unknown, missing or mistyped."""
        stored: Any = from_dict(_Stored, data, where)
        stats = (FeatureStats.from_dict(getattr(stored, name), f"{where}.{name}") for name in ("state", "action"))
        return cls(stored.config, *stats)


_Stored = make_dataclass("Codec", [("config", CodecConfig), ("state", Any), ("action", Any)])
"""the JSON form"""


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


Affine = tuple[Float64[np.ndarray, " D"], Float64[np.ndarray, " D"]]


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


def _encode(values: Any, affine: Affine, name: str) -> Float32[np.ndarray, "*lead D"]:
    offset, scale = affine
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        got = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise WireError(f"the {name} is not an array of floats", where=name, got=got, expected="float32")
    if values.ndim < 1 or values.shape[-1] != len(offset):
        raise WireError(f"the {name} must have the width {len(offset)}", where=name, got=values.shape)
    if not np.isfinite(values).all():
        bad = sorted(set(np.argwhere(~np.isfinite(values))[:, -1].tolist()))
        raise WireError(f"the {name} is not finite", where=f"{name} dims {bad}", got="NaN or inf", expected="finite")
    return ((values - offset) / scale).astype(np.float32)
