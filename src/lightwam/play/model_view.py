"""What a page shows of the model: the present chunk, an imagined future beside what came, attention, surprise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from lightwam.errors import CheckpointError, ConfigError, SimulatorError
from lightwam.evaluation.future_errors import read_futures
from lightwam.evaluation.seen import rms_error
from lightwam.evaluation.watch.surprise import FILE, EpisodeWatch, SurpriseWatch
from lightwam.play.board import Board
from lightwam.play.commands import Attention
from lightwam.policy.policy import Policy
from lightwam.report.images import jpeg_bytes, overlay
from lightwam.report.imagination import frame_spans, time_span
from lightwam.types import Observation

DIGITS = 4
"""decimals of the numbers that are drawn"""


def finite_chunk(chunk: Float32[np.ndarray, "H A"], where: str) -> Float32[np.ndarray, "H A"]:
    """Return the chunk; SimulatorError, naming `where`, if numbers of it are not finite."""
    if not np.isfinite(chunk).all():
        raise SimulatorError("the policy's actions must be finite", where=where, got=chunk.tolist())
    return chunk


@dataclass
class Future:
    """An imagined future, and the canvases that came at its times."""

    step: int
    """control steps since the reset at its present"""
    frames: UInt8[np.ndarray, "F height width 3"]
    spans: list[tuple[int, int]]
    """first and last of the frames that are equal: a latent covers several"""
    came: dict[int, UInt8[np.ndarray, "height width 3"]] = field(default_factory=dict)
    """index of a frame -> the canvas at its time"""

    @property
    def is_complete(self) -> bool:
        """Whether all of it has come."""
        return len(self.came) == len(self.frames)


class ModelView:
    """The parts of the board that come from the policy; `policy` is the plain one, which also imagines."""

    def __init__(self, policy: Policy, board: Board, imagine_steps: int) -> None:
        self.policy, self._board, self._imagine_steps = policy, board, imagine_steps
        self.imagines = self.attends = False
        self.watches = True
        self.choice = Attention(len(policy.recipe.model.backbone.taps) - 1)
        self._watch, self.why_no_watch = _load_watch(policy)
        self._errors: list[tuple[float, float]] = []
        self._measured = _measured_futures(policy)
        self.begin(1.0)

    def begin(self, fps: float, task: str = "") -> None:
        """Begin an episode of this many control steps a second; `task`: as the run's report calls it."""
        self._fps, self._task = fps, task
        self._future: Future | None = None
        self._episode: EpisodeWatch | None = self._watch.episode() if self._watch else None
        self._watched_at = 0
        self._scores: list[dict[str, Any]] = []
        self._attention: tuple[np.ndarray, list[np.ndarray]] | None = None
        self._board.drop("imagined/")
        self._board.drop("came/")
        self._board.put({"chunk": None, "future": None, "attended": None, "surprise": self._surprise()})

    def leave(self) -> None:
        """Go elsewhere in the episode, so that what was imagined and the surprise do not go on."""
        self.leave_future()
        self._episode, self._scores = self._watch.episode() if self._watch else None, []

    def leave_future(self) -> None:
        """Let the next chunk begin another future, also if not all of this one came."""
        self._future = None

    def asked(self, step: int, observation: Observation, chunk: Float32[np.ndarray, "H A"], replan: int) -> None:
        """Show what the policy returned for an observation, and what it imagines and attends to there."""
        rounded = chunk.round(DIGITS).astype(float).tolist()
        self._board.put({"chunk": {"step": step, "actions": rounded, "replan": replan}})
        if self._episode is not None and self.watches:
            self._update_surprise(step, observation)
        if self.attends:
            maps = self.policy.attention(observation)
            self._attention = self.policy.codec.canvas(observation.frames), maps
            self.show_attention()
        if self.imagines and self._future is None:
            frames = self.policy.imagine(observation, step, self._imagine_steps)
            self._future = Future(step, frames, frame_spans(frames[None]))
            self._show_imagined(self._future)
            self.saw(step, observation)

    def saw(self, step: int, observation: Observation) -> None:
        """Put the canvas of a control step beside the imagined one of that time."""
        future = self._future
        if future is None:
            return
        index, rest = divmod(step - future.step, self.policy.recipe.codec.video_stride)
        if rest or index in future.came or index >= len(future.frames):
            return
        future.came[index] = self.policy.codec.canvas(observation.frames)
        columns = [(first + last + 1) // 2 for first, last in future.spans]
        parts: dict[str, Any] = {}
        if index in columns:
            parts[f"came/{columns.index(index)}"] = jpeg_bytes(future.came[index])
        if future.is_complete:
            self._errors.append(self._measure(future))
            self._future = None
        self._board.put(parts | {"future": self._about(future)})

    def show_attention(self) -> None:
        """Draw the latest attention with the present choice of layer and query."""
        if self._attention is None:
            return
        canvas, maps = self._attention
        taps = self.policy.recipe.model.backbone.taps
        layer = maps[min(self.choice.layer, len(maps) - 1)]
        query = self.choice.query if self.choice.query is not None and self.choice.query < len(layer) else None
        weight = layer.mean(0) if query is None else layer[query]
        weight = weight * weight.size  # 1 is uniform attention
        peak = float(weight.max())
        picture = jpeg_bytes(overlay(canvas, weight / max(2.0, peak)), 4)
        about = {"block": taps[min(self.choice.layer, len(maps) - 1)], "query": query, "peak": round(peak, 2)}
        self._board.put({"attention": picture, "attended": about})

    def hide(self) -> None:
        """Take what was turned off from the page."""
        if not self.imagines:
            self._future = None
            self._board.put({"future": None})
        if not self.attends:
            self._attention = None
            self._board.put({"attended": None})
        if not self.watches:
            self._episode = self._watch.episode() if self._watch else None

    def _update_surprise(self, step: int, observation: Observation) -> None:
        assert self._episode is not None
        surprise = self._episode.update(observation, step - self._watched_at)
        self._watched_at = step
        if surprise is not None:
            row = {"step": step, "score": round(surprise.score, DIGITS), "alarm": surprise.alarm}
            self._scores.append(row | {"camera": surprise.camera, "missed": surprise.missed})
            self._scores[-1]["valid"] = surprise.executed_as_calibrated
        self._board.put({"surprise": self._surprise()})

    def _surprise(self) -> dict[str, Any] | None:
        if self._watch is None:
            return None
        return {"threshold": self._watch.calibration.threshold, "scores": self._scores}

    def _show_imagined(self, future: Future) -> None:
        self._board.drop("came/")
        pictures = {
            f"imagined/{column}": jpeg_bytes(future.frames[(first + last + 1) // 2])
            for column, (first, last) in enumerate(future.spans)
        }
        self._board.put(pictures | {"future": self._about(future)})

    def _about(self, future: Future) -> dict[str, Any]:
        seconds = self.policy.recipe.codec.video_stride / self._fps
        columns = [(first + last + 1) // 2 for first, last in future.spans]
        means = np.mean(self._errors, axis=0).round(2).tolist() if self._errors else None
        return {
            "step": future.step,
            "times": [time_span(*span, seconds) for span in future.spans],
            "came": [column in future.came for column in columns],
            "errors": [round(error, 2) for error in self._errors[-1]] if future.is_complete else None,
            "mean_errors": means,
            "count": len(self._errors),
            "measured": self._measured.get(self._task),
        }

    def _measure(self, future: Future) -> tuple[float, float]:
        """Return the pixel errors, of 255, of the imagined frames and of the present repeated."""
        real = np.stack([future.came[index] for index in range(len(future.frames))])
        return float(rms_error(future.frames[1:], real[1:])), float(rms_error(real[:1], real[1:]))


def _measured_futures(policy: Policy) -> dict[str, dict[str, Any]]:
    """Return what the run's report measured of each task's futures, one chunk far."""
    found = read_futures(policy.run / "eval") if policy.run is not None else None
    names = ("imagined", "frozen", "moments", "episodes")
    rows = found[0].rows if found is not None else ()
    return {row.task: {name: getattr(row, name) for name in names} for row in rows if row.chunk == 1}


def _load_watch(policy: Policy) -> tuple[SurpriseWatch | None, str]:
    """Return the run's surprise watch, or None and why there is none."""
    if policy.run is None or not (policy.run / FILE).is_file():
        return None, f"not calibrated; lightwam watch {policy.run} does that"
    try:
        return SurpriseWatch.load(policy.run, policy), ""
    except (CheckpointError, ConfigError) as error:
        return None, error.what
