"""The state of a session: its running episode, its controls, and what pages are told of them."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.errors import ConfigError
from lightwam.evaluation.rollouts import EpisodeJob
from lightwam.play import commands
from lightwam.play.commands import Begin, Event
from lightwam.play.model_view import DIGITS, ModelView
from lightwam.play.world import Seen, World
from lightwam.policy.episode import Episode
from lightwam.policy.policy import Policy
from lightwam.report.images import jpeg_bytes

MOST_SHOWN = 60
"""executed actions that are drawn"""


@dataclass
class Scene:
    """The running episode."""

    job: EpisodeJob
    sentence: str
    world: World
    seen: Seen
    player: Episode
    actions: list[Float32[np.ndarray, " A"]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    """the changes so far"""
    pending: list[Event] = field(default_factory=list)
    """of an earlier episode that is repeated: the changes to come, in order"""

    def pictures(self) -> dict[str, Any]:
        """Return the parts of the board that change at every step."""
        pictures = {f"camera/{name}": jpeg_bytes(frame, 2) for name, frame in self.seen.pictures.items()}
        rows = np.stack(self.actions[-MOST_SHOWN:]).round(DIGITS).astype(float).tolist() if self.actions else []
        return pictures | {"actions": {"first": len(self.actions) - len(rows), "rows": rows}}


@dataclass
class Controls:
    """What pages change, and the counts of a session."""

    replan: int
    begun: Begin
    """how the running episode was begun, or the one that could not be"""
    speed: float = 1.0
    """times the control rate; 0: as fast as the machine can"""
    uses_engine: bool = False
    goes_on: bool = False
    """with the next seed when an episode is over"""
    playing: bool = False
    phase: str = "loading"
    """loading, ready, died (the simulator's process) or failed (no episode could be begun)"""
    message: str = ""
    num_episodes: int = 0
    num_successes: int = 0
    step_times: deque[float] = field(default_factory=lambda: deque(maxlen=12))
    """when the latest steps were done, seconds"""

    @property
    def rate(self) -> float:
        """Control steps a second lately, 0 if unknown."""
        times = self.step_times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0


def check_replan(policy: Policy, steps: int) -> None:
    """Raise ConfigError for a number of steps that cannot be executed of a chunk."""
    most = policy.recipe.model.supervised_prefix
    if not 1 <= steps <= most:
        expected = f"1 to {most}, the steps that training supervised"
        raise ConfigError("replan is out of range", got=steps, expected=expected)


def about(policy: Policy, view: ModelView) -> dict[str, Any]:
    """Return what stays the same as long as the server runs."""
    facts, recipe = policy.facts, policy.recipe
    sentences = [*(facts.sentences if facts else ()), *policy.prompts.sentences()]
    return {
        "run": policy.run.resolve().name if policy.run else recipe.name,
        "recipe": recipe.name,
        "step": policy.step,
        "computes": policy.computes,
        "cameras": list(policy.cameras),
        "sentences": list(dict.fromkeys(sentences)),
        "speeds": list(commands.SPEEDS),
        "most_replan": recipe.model.supervised_prefix,
        "horizon": recipe.model.horizon,
        "taps": list(recipe.model.backbone.taps),
        "num_queries": recipe.model.expert.num_queries,
        "no_watch": view.why_no_watch,
    }


def status(controls: Controls, scene: Scene | None, view: ModelView) -> dict[str, Any]:
    """Return what changes with every step or command."""
    begun = controls.begun
    return {
        "phase": controls.phase,
        "message": controls.message,
        "playing": controls.playing,
        "task": begun.task,
        "seed": begun.seed,
        "first_sentence": begun.sentence,
        "sentence": scene.sentence if scene else begun.sentence or "",
        "step": scene.seen.steps if scene else 0,
        "over": scene.seen.is_over if scene else False,
        "success": scene.seen.success if scene else False,
        "progress": dict(scene.seen.progress) if scene else {},
        "events": [asdict(event) for event in scene.events] if scene else [],
        "episodes": controls.num_episodes,
        "successes": controls.num_successes,
        "speed": controls.speed,
        "rate": round(controls.rate, 1),
        "replan": controls.replan,
        "engine": controls.uses_engine,
        "next_seed": controls.goes_on,
        "imagine": view.imagines,
        "attention": view.attends,
        "layer": view.choice.layer,
        "query": view.choice.query,
        "surprise": view.watches,
    }
