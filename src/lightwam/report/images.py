"""Frames, films and heat maps as data URIs, by PyAV alone."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.errors import CheckpointError

# dark to bright, even in lightness, told apart by every kind of colour vision
_HEAT = np.asarray(
    [[12, 8, 38], [66, 10, 104], [124, 28, 109], [187, 55, 84], [232, 105, 37], [251, 165, 10], [250, 235, 130]],
    np.float32,
)


@dataclass(frozen=True)
class Film:
    """A rollout video, ready to be put into the page."""

    uri: str
    poster: str
    """its last frame"""
    strip: str
    """its first, middle and last frame side by side, for print"""
    width: int
    height: int
    num_bytes: int


def jpeg(picture: UInt8[np.ndarray, "height width 3"], quality: int = 3) -> str:
    """A picture as a data URI; `quality` is the quantiser, 2 is finest. No chroma is thrown away."""
    import av

    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj444p", Fraction(1, 25)
    encoder.qmin = encoder.qmax = quality
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuvj444p")
    frame.pts = 0
    return _uri("image/jpeg", b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))


def film(path: Path) -> Film:
    """The video file at `path`; CheckpointError when it cannot be decoded."""
    import av

    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise _broken_film(path, error) from error
    if not frames:
        raise _broken_film(path, "no frame in it")
    height, width = frames[0].shape[:2]
    data = path.read_bytes()
    strip = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]], axis=1)
    return Film(_uri("video/mp4", data), jpeg(frames[-1], 5), jpeg(strip, 6), width, height, len(data))


def heat(weight: Float[np.ndarray, "rows cols"]) -> UInt8[np.ndarray, "rows cols 3"]:
    """Colours of weights within [0, 1]."""
    at = np.clip(weight, 0, 1).astype(np.float32) * (len(_HEAT) - 1)
    low = np.minimum(at.astype(int), len(_HEAT) - 2)
    part = (at - low)[..., None]
    return (_HEAT[low] * (1 - part) + _HEAT[low + 1] * part).round().astype(np.uint8)


def overlay(
    picture: UInt8[np.ndarray, "height width 3"], weight: Float[np.ndarray, "rows cols"]
) -> UInt8[np.ndarray, "drawn_height drawn_width 3"]:
    """The picture in grey under the colours of `weight` in [0, 1], at least 160 pixels high."""
    times = max(1, -(-160 // picture.shape[0]))
    grey = picture.repeat(times, 0).repeat(times, 1).astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], np.float32)
    full = spread(weight, grey.shape)
    alpha = (0.2 + 0.65 * np.sqrt(np.clip(full, 0, 1)))[..., None]
    mixed = (0.85 * grey)[..., None] * (1 - alpha) + heat(full).astype(np.float32) * alpha
    return mixed.round().clip(0, 255).astype(np.uint8)


def spread(weight: Float[np.ndarray, "rows cols"], shape: tuple[int, ...]) -> Float[np.ndarray, "height width"]:
    """Token weights over pixels, bilinear between the tokens' centres and constant beyond the outermost."""
    for axis, size in enumerate(shape):
        tokens = weight.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * tokens / size - 0.5, 0, tokens - 1)
        low = np.minimum(at.astype(int), max(tokens - 2, 0))
        part = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        weight = weight.take(low, axis) * (1 - part) + weight.take(np.minimum(low + 1, tokens - 1), axis) * part
    return weight


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _broken_film(path: Path, got: object) -> CheckpointError:
    return CheckpointError(
        "a rollout video cannot be decoded", where=path, got=got, expected="an mp4 with at least one frame",
        next_step="delete it: the report then names it as missing",
    )  # fmt: skip
