"""Frames, rollout videos and heat maps as data URIs, encoded by PyAV."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lightwam.errors import CheckpointError

# from dark to bright in even steps of lightness, which every kind of colour vision can tell apart
_HEAT = np.asarray(
    [[12, 8, 38], [66, 10, 104], [124, 28, 109], [187, 55, 84], [232, 105, 37], [251, 165, 10], [250, 235, 130]],
    np.float32,
)


@dataclass(frozen=True)
class Image:
    """A picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Video:
    """A rollout video as a data URI."""

    uri: str
    poster: Image
    """its last frame"""
    strip: Image
    """its first, middle and last frame side by side, for print"""


def jpeg(picture: UInt8[np.ndarray, "height width 3"], quality: int = 3) -> Image:
    """Encode a picture as `jpeg_bytes` does."""
    height, width = picture.shape[:2]
    return Image(_uri("image/jpeg", jpeg_bytes(picture, quality)), width, height)


def jpeg_bytes(picture: UInt8[np.ndarray, "height width 3"], quality: int = 3) -> bytes:
    """Encode a picture without chroma subsampling; `quality` is the quantiser, 2 is the finest."""
    import av

    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj444p", Fraction(1, 25)
    encoder.qmin = encoder.qmax = quality
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuvj444p")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def read_video(path: Path) -> Video:
    """Read a video file; CheckpointError when it cannot be decoded."""
    import av

    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            if not frames:
                raise IndexError("no frame")
    except (av.FFmpegError, IndexError) as error:
        what, step = "a rollout video cannot be decoded", "delete it: the report then says that it is missing"
        raise CheckpointError(what, where=path, got=error, next_step=step) from error
    strip = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]], axis=1)
    return Video(_uri("video/mp4", path.read_bytes()), jpeg(frames[-1], 5), jpeg(strip, 6))


def heat(weight: Float[np.ndarray, "rows cols"]) -> UInt8[np.ndarray, "rows cols 3"]:
    """Return the colours of weights within [0, 1]."""
    at = np.clip(weight, 0, 1).astype(np.float32) * (len(_HEAT) - 1)
    low = np.minimum(at.astype(int), len(_HEAT) - 2)
    part = (at - low)[..., None]
    return (_HEAT[low] * (1 - part) + _HEAT[low + 1] * part).round().astype(np.uint8)


def overlay(
    picture: UInt8[np.ndarray, "height width 3"], weight: Float[np.ndarray, "rows cols"]
) -> UInt8[np.ndarray, "drawn_height drawn_width 3"]:
    """Draw the picture in grey under the colours of `weight` in [0, 1], at least 160 pixels high."""
    times = max(1, -(-160 // picture.shape[0]))
    grey = picture.repeat(times, 0).repeat(times, 1).astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], np.float32)
    full = upsample(weight, grey.shape)
    alpha = (0.2 + 0.65 * np.sqrt(np.clip(full, 0, 1)))[..., None]
    mixed = (0.85 * grey)[..., None] * (1 - alpha) + heat(full).astype(np.float32) * alpha
    return mixed.round().clip(0, 255).astype(np.uint8)


def upsample(weight: Float[np.ndarray, "rows cols"], shape: tuple[int, ...]) -> Float[np.ndarray, "height width"]:
    """Interpolate token weights to pixels: bilinear between the tokens' centres, constant beyond the outermost."""
    for axis, size in enumerate(shape):
        tokens = weight.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * tokens / size - 0.5, 0, tokens - 1)
        low = np.minimum(at.astype(int), max(tokens - 2, 0))
        part = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        weight = weight.take(low, axis) * (1 - part) + weight.take(np.minimum(low + 1, tokens - 1), axis) * part
    return weight


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
