"""Videos of a dataset: encode a clip, join clips without encoding again, read exact frames back.

H.264 in full chroma (yuv444p): with halved chroma a red target of 3 pixels in a 96-pixel picture comes back 31 grey
levels off and brownish, in full chroma under 2 (docs/data.md). LeRobot's decoders read both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from lightwam.errors import DatasetError

PIXEL_FORMAT = "yuv444p"
ENCODER_OPTIONS = {"crf": "18", "preset": "ultrafast", "bf": "0"}
KEYFRAME_EVERY = 10


def _converter(pixel_format: str) -> Callable[[Any], Any]:
    """Frame -> frame in another pixel format, on one thread and with the tables made once.

    PyAV from 17 on would wake a thread a core for every small picture; before, it has one thread and no such option.
    """
    import av

    reformatter = av.video.reformatter.VideoReformatter()
    options: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
    return lambda frame: reformatter.reformat(frame, format=pixel_format, **options)


def write_video(path: Path, clip: UInt8[np.ndarray, "T height width 3"], fps: int) -> None:
    """Write one clip for people to look at: halved chroma, which every browser plays; sides must be even."""
    encode_video(path, clip, fps, pixel_format="yuv420p", options={"crf": "20", "preset": "veryfast"})


def encode_video(
    path: Path,
    clip: UInt8[np.ndarray, "T height width 3"],
    fps: int,
    pixel_format: str = PIXEL_FORMAT,
    options: Mapping[str, str] = ENCODER_OPTIONS,
) -> None:
    """Write one clip as an mp4 of its own, one thread (about 2,000 frames/s of 96x96 on a core)."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], pixel_format
        stream.gop_size, stream.codec_context.thread_count = KEYFRAME_EVERY, 1
        convert = _converter(pixel_format)
        for index, picture in enumerate(clip):
            frame = convert(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def join_videos(parts: Sequence[Path], lengths: Sequence[int], fps: int, path: Path) -> None:
    """Put clips of `lengths` frames one behind the other into one mp4 without encoding again.

    All parts come from `encode_video` at one size and rate, so that they share their decoder setup; that is checked.
    """
    import av

    with av.open(str(path), "w", format="mp4") as joined:
        target: Any = None
        setup: bytes | None = None
        frames_before = 0
        for part, length in zip(parts, lengths, strict=True):
            with av.open(str(part)) as container:
                source = container.streams.video[0]
                if target is None:
                    target, setup = joined.add_stream_from_template(source), source.codec_context.extradata
                if source.codec_context.extradata != setup:
                    raise DatasetError("clips of one dataset were encoded differently", where=part, expected=parts[0])
                count = _append_packets(joined, target, container.demux(source), frames_before, fps)
            if count != length:
                raise DatasetError("a clip has another length than its episode", where=part, got=count, expected=length)
            frames_before += length


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


class VideoReader:
    """Exact frames of one video file. Reading one range behind the other goes on decoding without a seek.

    Not for use by two threads at once. Raises DatasetError when the file is missing, broken or shorter than asked.
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
            raise DatasetError("a file holds no video", where=path, expected="one video stream")
        self._stream: Any = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # small pictures: threads cost more than they give
        self.height, self.width = self._stream.height, self._stream.width
        self._convert = _converter("rgb24")
        self._frames: Iterator[Any] = iter(())
        self._ahead: float | None = None
        """the time after the last frame given, when decoding can go on from there"""

    def read(self, start: float, count: int, fps: float) -> UInt8[np.ndarray, "T height width 3"]:
        """`count` frames from `start` seconds on, each checked to lie within half a frame of where it should."""
        return next(self.stream(start, count, fps, count))

    def stream(
        self, start: float, count: int, fps: float, batch: int
    ) -> Iterator[UInt8[np.ndarray, "T height width 3"]]:
        """The same frames, at most `batch` of them in memory at a time."""
        taken = 0
        while taken < count:
            out = np.empty((min(batch, count - taken), self.height, self.width, 3), np.uint8)
            for row in out:
                self._copy(self._next(start, taken, count, fps), row)
                taken += 1
            if taken == count:
                self._ahead = start + count / fps
            yield out

    def _next(self, start: float, taken: int, count: int, fps: float) -> Any:
        """The decoder's next frame, which must be number `taken` of the range."""
        import av

        try:
            if not taken:
                self._seek(start, 1 / fps)
            for frame in self._frames:
                moment, expected = frame.time, start + taken / fps
                if moment is None:
                    raise DatasetError("a video has a frame without a time", where=self.path, expected="a time a frame")
                if moment < start - 0.5 / fps:
                    continue
                if abs(moment - expected) > 0.5 / fps:
                    raise DatasetError("a video skips a frame", where=f"{self.path} frame {taken} from {start:.3f} s",
                                       got=f"{moment:.4f} s", expected=f"{expected:.4f} s")  # fmt: skip
                return frame
        except av.FFmpegError as error:
            raise self._broken(error) from error
        raise DatasetError(
            "a video is shorter than its episode",
            where=f"{self.path} from {start:.3f} s",
            got=f"{taken} frames",
            expected=f"{count} frames",
            next_step="the video was cut short: copy the dataset again, or leave this episode out",
        )

    def _seek(self, start: float, frame_time: float) -> None:
        if self._ahead is None or abs(self._ahead - start) > 0.1 * frame_time:
            self._container.seek(round(start / float(self._stream.time_base)), stream=self._stream)
            self._frames = self._container.decode(self._stream)
        self._ahead = None

    def _copy(self, frame: Any, out: UInt8[np.ndarray, "height width 3"]) -> None:
        plane: Any = self._convert(frame).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(self.height, plane.line_size)
        out[:] = rows[:, : self.width * 3].reshape(out.shape)

    def _broken(self, error: Exception) -> DatasetError:
        return DatasetError("a video cannot be decoded", where=self.path, got=error, expected="a whole mp4",
                            next_step="it was cut short or overwritten: copy the dataset again")  # fmt: skip

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
