"""PNG and JPEG, from a dataset's table or a robot's message: one way to decode them, bounded before it begins."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
"""first bytes"""
RGB_MARK = b"XPL-RGB1"
"""comment of a JPEG that XPolicyLab's clients wrote with red as red; their older ones swap red and blue, unmarked"""
NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""chunks of a PNG that are decoded; others may unpack to any size"""
MOST_SCANS = 64
"""of a progressive JPEG; each is a pass over the whole picture"""


class PictureError(ValueError):
    """Bytes that are not a whole PNG or JPEG, or one of too many pixels; `step` says what to do."""

    def __init__(self, what: str, step: str = "send it whole, as it was encoded") -> None:
        super().__init__(what)
        self.step = step


def is_encoded(data: bytes) -> bool:
    """Whether bytes begin as a PNG or a JPEG does."""
    return data.startswith((PNG, JPEG))


def decode(data: bytes, most_bytes: int, *, legacy: bool = False) -> UInt8[np.ndarray, "height width 3"]:
    """The RGB picture of a whole PNG or JPEG; transparency is left out, grey becomes three equal colours.

    `most_bytes` bounds the picture decoded, height * width * 3; the size is read before anything is decoded. `legacy`:
    a JPEG without XPolicyLab's mark has red and blue swapped. Raises PictureError.
    """
    if data.startswith(PNG):
        name, size, data = "png", *_png(data)
    elif data.startswith(JPEG):
        name, size = "mjpeg", _jpeg(data)
    else:
        raise PictureError(f"bytes that begin with {data[:8]!r}, which no PNG or JPEG does", "encode it as PNG or JPEG")
    if 0 in size or size[0] * size[1] * 3 > most_bytes:
        raise PictureError(
            f"{size[0]} x {size[1]} pixels, where at most {most_bytes // 3} are allowed, and at least one",
            "send it smaller, or raise --limits.array-bytes",
        )
    import av

    # a decoder a picture: FFmpeg's for PNG, used again, adds the last picture's first row to the next one
    decoder: Any = av.CodecContext.create(name, "r")
    decoder.thread_count = 1  # more would hold the picture back
    try:
        frames = decoder.decode(av.Packet(data))
    except av.FFmpegError as error:
        raise PictureError(f"a {name} that cannot be decoded: {error}") from error
    if len(frames) != 1 or (frames[0].height, frames[0].width) != size:
        raise PictureError(f"a {name} that does not decode to one picture of {size[0]} x {size[1]} pixels")
    picture: np.ndarray = frames[0].to_ndarray(format="rgb24")
    return np.ascontiguousarray(picture[:, :, ::-1]) if legacy and name == "mjpeg" and not _is_marked(data) else picture


def _png(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Height and width of a whole PNG, and what of it has to be decoded."""
    kept, at, size = [PNG], len(PNG), (0, 0)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise PictureError("a PNG with damaged bytes")
        if kind == b"IHDR" and length >= 8:
            width, height = struct.unpack_from(">II", data, at + 8)
            size = height, width
        if kind in NEEDED:
            kept.append(data[at:end])
        if kind == b"IEND":
            return size, b"".join(kept)
        at = end
    raise PictureError("a PNG that is cut short")


def _jpeg(data: bytes) -> tuple[int, int]:
    """Height and width of a whole JPEG."""
    size = None
    segments, scan = _segments(data)
    for marker, body in segments:
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            _, height, width, colours = struct.unpack_from(">BHHB", body)
            if colours not in (1, 3):
                raise PictureError(f"a JPEG of {colours} colours, not RGB or grey", "convert it to RGB first")
            size = height, width
    if size is None or data.find(b"\xff\xd9", scan) < 0:  # among a scan's bytes there is no such mark
        raise PictureError("a JPEG that is cut short")
    if data.count(b"\xff\xda", scan) > MOST_SCANS:
        raise PictureError(f"a JPEG of more than {MOST_SCANS} scans", "encode it as a plain JPEG")
    return size


def _segments(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """A JPEG's markers before its first scan, each with what follows it, and where the scan begins."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xFF:  # a filler
            at += 1
            continue
        if marker in (0xDA, 0xD9):
            break
        found.append((marker, data[at + 4 : at + 2 + length]))
        at += 2 + length
    return found, at


def _is_marked(data: bytes) -> bool:
    return any(marker == 0xFE and body.startswith(RGB_MARK) for marker, body in _segments(data)[0])
