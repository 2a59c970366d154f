"""Record an episode while it happens: pictures are encoded as they come, in a thread beside the control loop.

A column of truth values, INTERVENTION, marks the rows in which a person moved the robot: corrections. The name and the
form (bool, one a row) are those of LeRobot 0.6.1's rollout strategy `dagger`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightwam.data.lerobot.video import VideoEncoder
from lightwam.data.lerobot.writer import STAT_FRAMES, EpisodeVectors, LeRobotWriter, picture_stats
from lightwam.errors import DatasetError

INTERVENTION = "intervention"
WAITING_BYTES = 512 * 2**20
"""most bytes of pictures that wait for the encoder"""


class EpisodeRecorder:
    """The recording of one episode into a `LeRobotWriter` that has the flag INTERVENTION.

    End it with `save` or `discard`. `add` takes microseconds, unless the encoder is slower than the pictures come: then
    they wait in memory, and DatasetError is raised beyond WAITING_BYTES.
    """

    def __init__(self, writer: LeRobotWriter) -> None:
        self._writer, self._stack = writer, contextlib.ExitStack()
        self._folder = self._stack.enter_context(writer.draft())
        bytes_a_step = sum(3 * height * width for height, width in writer.robot.cameras.values())
        self._queue: queue.Queue[Mapping[str, np.ndarray] | None] = queue.Queue(max(2, WAITING_BYTES // bytes_a_step))
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._corrected: list[bool] = []
        self._encoding = _Encoding(self._folder, writer, self._queue)
        self._encoding.start()

    def add(self, frames: Mapping[str, np.ndarray], state: np.ndarray, action: np.ndarray, *, corrected: bool) -> None:
        """Take one row: pictures (height, width, 3), state (P,) and action (A,), copied; `corrected`: by hand.

        DatasetError if the encoder failed or is too slow, or a picture does not have its camera's size.
        """
        if self._encoding.error is not None:
            raise self._encoding.error
        for camera, size in self._writer.robot.cameras.items():
            if frames[camera].shape != (*size, 3):
                what, expected = "a camera's pictures must keep their size", (*size, 3)
                raise DatasetError(what, where=f"camera {camera}", got=frames[camera].shape, expected=expected)
        try:
            self._queue.put_nowait({camera: frames[camera].copy() for camera in self._writer.robot.cameras})
        except queue.Full:
            got, step = f"{self._queue.maxsize} steps wait", "record smaller pictures (--camera-size)"
            raise DatasetError("this machine encodes slower than the pictures come", got=got, next_step=step) from None
        self._states.append(np.array(state, np.float32))
        self._actions.append(np.array(action, np.float32))
        self._corrected.append(corrected)

    def save(self, task: str, extra: Mapping[str, Any]) -> str:
        """Write the episode into the dataset, complete and readable, and return a line about it; an empty one is none.

        DatasetError as `LeRobotWriter.add_episode`.
        """
        with self._stack:
            self._encoding.finish()
            if self._encoding.error is not None:
                raise self._encoding.error
            if not self._states:
                return "nothing was recorded"
            flags = {INTERVENTION: np.array(self._corrected)}
            vectors = EpisodeVectors(np.stack(self._states), np.stack(self._actions), task, flags)
            index = self._writer.keep(self._folder, vectors, self._encoding.picture_stats(), extra)
        self._writer.close()
        marked = f", {sum(self._corrected)} of them corrections" if any(self._corrected) else ""
        return f"episode {index} of {self._writer.root}: {len(self._states)} frames{marked}"

    def discard(self) -> None:
        """Forget the episode."""
        with self._stack:
            self._encoding.finish()


class _Encoding(threading.Thread):
    """Encodes the pictures of a queue, until None."""

    def __init__(
        self, folder: Path, writer: LeRobotWriter, pictures: queue.Queue[Mapping[str, np.ndarray] | None]
    ) -> None:
        super().__init__(name="lightwam recording", daemon=True)
        self._folder, self._fps, self._cameras = folder, writer.robot.fps, writer.robot.cameras
        self._queue, self._stride, self._count = pictures, 1, 0
        self._sample: list[Mapping[str, np.ndarray]] = []
        self.error: DatasetError | None = None

    def run(self) -> None:
        """Encode, and keep the error that ends it."""
        encoders: dict[str, VideoEncoder] = {}
        try:
            with contextlib.ExitStack() as stack:
                while (frames := self._queue.get()) is not None:
                    for camera, picture in frames.items():
                        if camera not in encoders:
                            size = picture.shape[0], picture.shape[1]
                            encoders[camera] = VideoEncoder(self._folder / f"{camera}.mp4", size, self._fps)
                            stack.callback(encoders[camera].close)
                        encoders[camera].add(picture)
                    self._keep_sample(frames)
        except Exception as error:  # raised by `add` or `finish`, in the control loop
            what = "the recording cannot be written"
            self.error = DatasetError(what, where=self._folder, got=f"{type(error).__name__}: {error}")

    def _keep_sample(self, frames: Mapping[str, np.ndarray]) -> None:
        """Keep evenly spaced pictures for the statistics: STAT_FRAMES of them, up to twice as many."""
        if self._count % self._stride == 0:
            self._sample.append(frames)
        self._count += 1
        if len(self._sample) > 2 * STAT_FRAMES:
            self._sample, self._stride = self._sample[::2], 2 * self._stride

    def finish(self) -> None:
        """Wait until all is encoded, or the encoding has failed."""
        while self.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=1.0)
                self.join()

    def picture_stats(self) -> dict[str, Any]:
        """Return each camera's picture statistics, after `finish`."""
        return {name: picture_stats(np.stack([frames[name] for frames in self._sample])) for name in self._cameras}
