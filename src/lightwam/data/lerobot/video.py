"""Videos of a dataset: encode a clip, join clips without encoding again, read exact frames.

H.264 in full chroma (yuv444p): with halved chroma a red target of 3 pixels in a 96-pixel picture comes back 31 grey
levels off and brownish, in full chroma under 2 (docs/data.md). LeRobot's decoders read both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from lightwam.errors import DatasetError
from lightwam.system.file_damage import likely_cause

PIXEL_FORMAT = "yuv444p"
ENCODER_OPTIONS = {"crf": "18", "preset": "ultrafast", "bf": "0"}
KEYFRAME_EVERY = 10
TOLERANCE = 1e-4
"""seconds between a row's time and its nearest frame, at most (LeRobot's tolerance_s)"""
SEEK_BEYOND = 2.0
"""seconds: frames up to this far ahead are reached by decoding, later ones by a seek"""


def _converter(pixel_format: str) -> Callable[[Any], Any]:
    """Return a function that converts a frame to another pixel format, in one thread.

    PyAV from 17 on would use a thread for each core even for small pictures; before, it has one and no such option.
    """
    import av

    reformatter = av.video.reformatter.VideoReformatter()
    options: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
    return lambda frame: reformatter.reformat(frame, format=pixel_format, **options)


def write_video(path: Path, clip: UInt8[np.ndarray, "T height width 3"], fps: int) -> None:
    """Write a clip for people to watch: halved chroma, which every browser plays; sides must be even."""
    encode_video(path, clip, fps, pixel_format="yuv420p", options={"crf": "20", "preset": "veryfast"})


def encode_video(
    path: Path,
    clip: UInt8[np.ndarray, "T height width 3"],
    fps: int,
    pixel_format: str = PIXEL_FORMAT,
    options: Mapping[str, str] = ENCODER_OPTIONS,
) -> None:
    """Write a clip to an mp4 file in one thread (about 2,000 frames/s of 96x96 on a core)."""
    encoder = VideoEncoder(path, (clip.shape[1], clip.shape[2]), fps, pixel_format, options)
    try:
        for picture in clip:
            encoder.add(picture)
    finally:
        encoder.close()


class VideoEncoder:
    """An mp4 file that is written picture by picture, in one thread; `size` is (height, width)."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: int,
        pixel_format: str = PIXEL_FORMAT,
        options: Mapping[str, str] = ENCODER_OPTIONS,
    ) -> None:
        import av

        self._av, self._fps, self._count = av, fps, 0
        self._container: Any = av.open(str(path), "w", format="mp4")
        self._stream: Any = self._container.add_stream("libx264", rate=fps, options=dict(options))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt, self._stream.gop_size = pixel_format, KEYFRAME_EVERY
        self._stream.codec_context.thread_count = 1
        self._convert = _converter(pixel_format)

    def add(self, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Append a picture."""
        frame = self._convert(self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
        frame.pts, frame.time_base = self._count, Fraction(1, self._fps)
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still has, and close the file."""
        try:
            self._container.mux(self._stream.encode())
        finally:
            self._container.close()


def join_videos(parts: Sequence[Path], lengths: Sequence[int], fps: int, path: Path) -> None:
    """Join clips of `lengths` frames into one mp4 without encoding again.

    All parts must come from `encode_video` at one size and rate, so that they have the same decoder setup, and have
    these lengths; DatasetError otherwise.
    """
    import av

    with av.open(str(path), "w", format="mp4") as joined:
        target: Any = None
        setup: bytes | None = None
        for part, length, end in zip(parts, lengths, accumulate(lengths), strict=True):
            with av.open(str(part)) as container:
                source = container.streams.video[0]
                if target is None:
                    target, setup = joined.add_stream_from_template(source), source.codec_context.extradata
                if source.codec_context.extradata != setup:
                    raise DatasetError("clips of one dataset were encoded differently", where=f"{part}, {parts[0]}")
                count = _append_packets(joined, target, container.demux(source), end - length, fps)
            if count != length:
                raise DatasetError("a clip has another length than its episode", where=part, got=count, expected=length)


def _append_packets(joined: Any, target: Any, packets: Iterator[Any], frames_before: int, fps: int) -> int:
    count = 0
    for packet in packets:
        if packet.dts is None:  # the empty packet that ends a stream
            continue
        offset = Fraction(frames_before, fps) / packet.time_base
        assert offset.denominator == 1, (frames_before, fps, packet.time_base)
        packet.pts, packet.dts = packet.pts + int(offset), packet.dts + int(offset)
        packet.stream = target
        joined.mux(packet)
        count += 1
    return count


def _no_frame(where: str, moment: float, before: float | None, after: float | None) -> DatasetError:
    """Return the error for a row's time without a frame; `before` and `after` are the times of its neighbours."""
    what = "a video is shorter than its episode" if after is None else "the video has no frame at a row's time"
    times, step = [time for time in (before, after) if time is not None], "copy it again, or correct these times"
    words = "frames" if len(times) == 2 else "the last frame" if after is None else "the first frame"
    got = f"{words} at {' and '.join(f'{time:.4f}' for time in times)} s" if times else "no frame"
    expected = f"one within {TOLERANCE} s of {moment:.4f} s (from_timestamp + timestamp), as in LeRobot"
    return DatasetError(what, where=where, got=got, expected=expected, next_step=f"{step}, or leave this episode out")


class VideoReader:
    """A reader of one video file's frames by their time, for one thread; rising times are decoded without a seek.

    DatasetError when the file is missing or broken, or has no frame at a requested time.
    """

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        if not path.is_file():
            raise DatasetError("a video is missing", where=path, next_step="copy the dataset again")
        try:
            self._container = av.open(str(path))
        except av.FFmpegError as error:
            raise self._broken(error) from error
        if not self._container.streams.video:
            self._container.close()
            raise DatasetError("a file holds no video", where=path, next_step="copy it again")
        self._stream: Any = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # small pictures: more threads cost more than they gain
        self.height, self.width = self._stream.height, self._stream.width
        self._convert = _converter("rgb24")
        self._frames: Iterator[Any] = iter(())
        self._latest: Any = None
        """the frame decoded last; None when decoding cannot continue from it"""
        self._moment = 0.0
        """its time"""

    def stream(
        self, times: Float64[np.ndarray, " T"], batch: int, what: str = ""
    ) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
        """Yield the frames at these times, in seconds from the file's start, at most `batch` at a time.

        `what` goes before the row number in errors. As in LeRobot, a time's frame is the nearest one and must be within
        TOLERANCE. LeRobot compares in float32, so that rounding is allowed on top.
        """
        slack = (TOLERANCE + np.spacing(np.abs(times).astype(np.float32)).astype(np.float64)).tolist()
        moments = times.tolist()
        for begin in range(0, len(moments), batch):
            rows = range(begin, min(begin + batch, len(moments)))
            out = np.empty((len(rows), self.height, self.width, 3), np.uint8)
            for row in rows:
                self._copy(self._at(moments[row], slack[row], f"{what}row {row}"), out[row - begin])
            yield out

    def _at(self, moment: float, slack: float, what: str) -> Any:
        """Decode the frame whose time is within `slack` of `moment`."""
        import av

        if self._latest is not None and abs(self._moment - moment) < slack:
            return self._latest
        before = self._moment if self._latest is not None and self._moment < moment else None
        try:
            if before is None or moment - before > SEEK_BEYOND:
                self._latest = before = None
                self._container.seek(round(moment / float(self._stream.time_base)) - 1, stream=self._stream)
                self._frames = self._container.decode(self._stream)
            for frame in self._frames:
                time = frame.time
                if time is None:
                    continue
                if time <= moment - slack:
                    before = time
                    continue
                self._latest, self._moment = frame, time
                if time < moment + slack:
                    return frame
                raise _no_frame(f"{self.path} {what}", moment, before, time)
        except av.FFmpegError as error:
            self._latest = None
            raise self._broken(error) from error
        self._latest = None
        raise _no_frame(f"{self.path} {what}", moment, before, None)

    def _copy(self, frame: Any, out: UInt8[np.ndarray, "height width 3"]) -> None:
        plane: Any = self._convert(frame).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(self.height, plane.line_size)
        out[:] = rows[:, : self.width * 3].reshape(out.shape)

    def _broken(self, error: Exception) -> DatasetError:
        what, got = "a video cannot be decoded", likely_cause(self.path) or error
        return DatasetError(what, where=self.path, got=got, next_step="copy it again: it was cut short or overwritten")

    def close(self) -> None:
        """Close the file."""
        self._container.close()
