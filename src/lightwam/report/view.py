"""Episodes as a Rerun recording: cameras, state and action, and what a policy predicts and imagines along them.

All episodes are on one timeline, one after the other, by frame and by time. https://rerun.io shows the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from lightwam.data.held_out import episode_sentences
from lightwam.data.lerobot.features import FeatureNames
from lightwam.data.lerobot.hub import find_dataset
from lightwam.data.lerobot.reader import LeRobotDataset
from lightwam.errors import ConfigError, SetupError
from lightwam.evaluation.recorded import RecordedEpisode, recorded_episodes
from lightwam.policy.policy import Policy
from lightwam.report.images import jpeg_bytes
from lightwam.system.progress import Progress, Say
from lightwam.types import Observation

FRAME, TIME = "frame", "time"
"""names of the timelines"""
GREY, BLUE, ORANGE = (150, 150, 150), (66, 133, 244), (255, 140, 0)
MAX_EPISODES = 4
"""shown unless others are asked for"""
MOST_STEPS = 1000
"""control steps of a run's episodes that are shown unless others are asked for"""
ACT_TOGETHER = 8
EXTRA = "pip install 'lightwam[view]'"


@dataclass(frozen=True)
class Joint:
    """A dimension of the state, of the action, or of both under one name."""

    name: str
    state: int | None
    action: int | None


def write_view(
    source: Path | str,
    to: Path | str,
    *,
    episodes: Sequence[int] = (),
    dataset: Path | str | None = None,
    names: FeatureNames | None = None,
    step: int | None = None,
    device: str = "auto",
    imagine_steps: int = 20,
    say: Say = print,
) -> Path:
    """Write a Rerun recording of `source`, a dataset (also a Hub id) or a run, to the file `to`; return it.

    `episodes`: their numbers; by default the first of each sentence, of a run those that it held out. Of a run (at
    `step`, the newest by default, on `device`) it also has the chunks that the policy predicts along its episodes, or
    those of another `dataset`, every `eval.replan` control steps, and futures of `imagine_steps` Euler steps (0: none).
    `names`: the features of a dataset without LeRobot's names. SetupError without the extra `view`; DatasetError and
    CheckpointError when dataset or run cannot be read; ConfigError for an episode that the dataset lacks.
    """
    rerun, to = _rerun(), Path(to)
    policy = None
    if (Path(source) / "recipe.json").is_file():
        policy = Policy.load(source, step, device=device)
        recorded = recorded_episodes(policy, dataset, MOST_STEPS, say)
        chosen = list(recorded.episodes)
        say(f"{source}: {'held-out' if recorded.held_out else 'training'} episodes of {chosen[0].dataset.root}")
    else:
        data = LeRobotDataset(find_dataset(source, names=names, say=say), names)
        chosen = [RecordedEpisode(data, number, text) for number, text in _first_of_each(data).items()]
    if episodes:
        chosen = [_episode(chosen[0], number) for number in episodes]
    view = _View(rerun, chosen[0].dataset, policy, str(source))
    view.save(to, list(chosen[0].dataset.cameras) if policy is None else list(policy.cameras))
    with Progress("view", sum(map(len, chosen)), unit="frame", say=say) as progress:
        for episode in chosen:
            view.add(episode, imagine_steps, progress)
    view.close()
    return to


def show(path: Path, say: Say = print) -> None:
    """Open a recording in Rerun's viewer, and wait until it is closed.

    Without a display it is served to browsers of this machine until Ctrl-C. SetupError without the extra `view`.
    """
    _rerun()
    command = [sys.executable, "-m", "rerun", str(path)]
    if not has_display():
        say("no display here: open the address below in a browser of this machine; Ctrl-C ends")
        command += ["--serve-web", "--bind", "127.0.0.1"]
    try:
        subprocess.run(command, check=False)
    except KeyboardInterrupt:
        return


def has_display() -> bool:
    """Return whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def joints(state_names: Sequence[str], action_names: Sequence[str]) -> list[Joint]:
    """Pair the dimensions of state and action if all have the same names; else those of the action come first."""
    if list(state_names) == list(action_names):
        return [Joint(name, number, number) for number, name in enumerate(state_names)]
    action = [Joint(f"action {name}", None, number) for number, name in enumerate(action_names)]
    return action + [Joint(f"state {name}", number, None) for number, name in enumerate(state_names)]


class _View:
    """A recording that is being written."""

    def __init__(self, rerun: Any, data: LeRobotDataset, policy: Policy | None, title: str) -> None:
        self._rerun, self._policy, self._title = rerun, policy, title
        self._joints, self._fps, self._next = joints(data.state_names, data.action_names), data.fps, 0
        self._out = rerun.RecordingStream("lightwam")
        self._out.send_recording_name(title)

    def save(self, to: Path, cameras: Sequence[str]) -> None:
        """Begin to write into a file, with the layout of the views."""
        to.parent.mkdir(parents=True, exist_ok=True)
        self._out.save(to, default_blueprint=self._blueprint(cameras))
        for joint in self._joints:
            self._style(joint, "state", GREY, 1.5, joint.state)
            self._style(joint, "action", BLUE, 1.5, joint.action)
            for number in range(self._num_lines):
                self._style(joint, f"chunk{number}", ORANGE, 1.0, joint.action)

    def add(self, episode: RecordedEpisode, imagine_steps: int, progress: Progress) -> None:
        """Add an episode after those that are there."""
        begin, length = self._next, len(episode)
        self._at(begin)
        words = [f"## {episode.instruction}", f"episode {episode.index} of {self._title}"]
        self._out.log("task", self._rerun.TextDocument("\n\n".join(words), media_type="text/markdown"))
        for kind, values in (("state", episode.state), ("action", episode.action)):
            self._scalars(kind, begin + np.arange(length), values, kind)
        observations = self._pictures(episode, progress)
        if self._policy is None:
            for _ in observations:
                pass
        else:
            self._predictions(self._policy, observations, begin, length, imagine_steps)
        self._next = begin + length + 1

    def close(self) -> None:
        """Complete the file."""
        self._out.flush()
        self._out.disconnect()

    @property
    def _num_lines(self) -> int:
        """Lines that a joint's chunks are drawn as, so that those that overlap have different ones."""
        if self._policy is None:
            return 0
        recipe = self._policy.recipe
        return recipe.model.horizon // recipe.eval.replan + 1

    def _pictures(self, episode: RecordedEpisode, progress: Progress) -> Iterator[Observation]:
        """Add the cameras' pictures; yield what a policy sees at every step."""
        cameras = list(episode.dataset.cameras) if self._policy is None else list(self._policy.cameras)
        for number, observation in enumerate(episode.observations(cameras)):
            self._at(self._next + number)
            for camera, picture in observation.frames.items():
                self._picture(f"camera/{_part(camera)}", picture)
            progress.advance(f"episode {episode.index}")
            yield observation

    def _predictions(
        self, policy: Policy, observations: Iterator[Observation], begin: int, length: int, imagine_steps: int
    ) -> None:
        """Add chunks, what the model sees, and what it imagines."""
        recipe = policy.recipe
        horizon, stride, replan = recipe.model.horizon, recipe.codec.video_stride, recipe.eval.replan
        asked: list[tuple[int, Observation]] = []
        for number, observation in enumerate(observations):
            if number % replan == 0:
                asked.append((number, observation))
            if number % stride == 0:
                self._picture("model/sees", policy.codec.canvas(observation.frames))
            if imagine_steps and number % horizon == 0:
                for index, canvas in enumerate(policy.imagine(observation, num_steps=imagine_steps)):
                    if number + index * stride < length and index * stride < horizon:
                        self._at(begin + number + index * stride)
                        self._picture("model/imagines", canvas)
        for first in range(0, len(asked), ACT_TOGETHER):
            together = asked[first : first + ACT_TOGETHER]
            chunks = policy.act_batch([observation for _, observation in together])
            for turn, ((number, _), chunk) in enumerate(zip(together, chunks, strict=True), first):
                steps = number + np.arange(min(horizon, length - number))
                self._scalars(f"chunk{turn % self._num_lines}", begin + steps, chunk[: len(steps)], "action")

    def _scalars(
        self, line: str, frames: Int64[np.ndarray, " n"], values: Float32[np.ndarray, "n dims"], kind: str
    ) -> None:
        """Add a piece of a line for every joint that has this kind of value, state or action."""
        rerun = self._rerun
        index = [rerun.TimeColumn(FRAME, sequence=frames), rerun.TimeColumn(TIME, duration=frames / self._fps)]
        for joint in self._joints:
            if (dim := getattr(joint, kind)) is not None:
                path = _path(joint, line)
                columns = rerun.Scalars.columns(scalars=values[:, dim].astype(np.float64))
                self._out.send_columns(path, indexes=index, columns=columns)
                self._at(int(frames[-1]) + 1)
                self._out.log(path, rerun.Clear(recursive=False))  # the next piece is not joined to it

    def _style(self, joint: Joint, line: str, colour: tuple[int, int, int], width: float, dim: int | None) -> None:
        if dim is not None:
            name = line.rstrip("0123456789")
            style = self._rerun.SeriesLines(colors=colour, widths=width, names=name)
            self._out.log(_path(joint, line), style, static=True)

    def _picture(self, path: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        self._out.log(path, self._rerun.EncodedImage(contents=jpeg_bytes(picture), media_type="image/jpeg"))

    def _at(self, frame: int) -> None:
        self._out.set_time(FRAME, sequence=frame)
        self._out.set_time(TIME, duration=frame / self._fps)

    def _blueprint(self, cameras: Sequence[str]) -> Any:
        """Return the layout: pictures and the task on the left, a plot for every joint on the right."""
        views = self._rerun.blueprint
        pictures = [views.Spatial2DView(origin=f"camera/{_part(name)}", name=name) for name in cameras]
        left: list[Any] = [views.Grid(*pictures, grid_columns=min(2, len(pictures)))]
        if self._policy is not None:
            model = (("sees", "the model sees"), ("imagines", "the model imagines"))
            left += [views.Horizontal(*(views.Spatial2DView(origin=f"model/{key}", name=name) for key, name in model))]
        left.append(views.TextDocumentView(origin="task", name="task"))
        plots = [views.TimeSeriesView(origin=f"joint/{_part(joint.name)}", name=joint.name) for joint in self._joints]
        right = views.Grid(*plots, grid_columns=1 + (len(plots) > 4) + (len(plots) > 12))
        shares = [6, 3, 2] if self._policy is not None else [4, 1]
        return views.Blueprint(
            views.Horizontal(views.Vertical(*left, row_shares=shares), right, column_shares=[1, 1]),
            views.TimePanel(state="collapsed", timeline=TIME, play_state="playing", loop_mode="all"),
            views.BlueprintPanel(state="collapsed"),
            views.SelectionPanel(state="collapsed"),
        )


def _rerun() -> Any:
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise SetupError("Rerun is not installed", got=error, next_step=EXTRA) from error
    return rerun


def _part(name: str) -> str:
    """Return a name as a part of an entity's path, with everything escaped that has a meaning there."""
    return "".join(character if character.isalnum() or character in "_-" else f"\\{character}" for character in name)


def _path(joint: Joint, line: str) -> str:
    return f"joint/{_part(joint.name)}/{line}"


def _first_of_each(data: LeRobotDataset) -> dict[int, str]:
    """Return the first episodes, of different sentences if there are several: episode -> sentence."""
    sentences = episode_sentences(data)
    first = {sentence: number for number, sentence in reversed([*sentences.items()])}
    chosen = [*sorted(first.values()), *(number for number in sentences if number not in first.values())]
    return {number: sentences[number] for number in sorted(chosen[:MAX_EPISODES])}


def _episode(like: RecordedEpisode, number: int) -> RecordedEpisode:
    """Return another episode of the same dataset; ConfigError if there is none."""
    data, sentences = like.dataset, episode_sentences(like.dataset)
    if number not in sentences:
        expected = f"0 to {data.num_episodes - 1}"
        raise ConfigError("no such episode", where=data.root, got=number, expected=expected)
    return replace(like, index=number, instruction=sentences[number])
