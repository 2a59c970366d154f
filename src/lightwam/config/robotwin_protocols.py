"""Constants of an evaluation in RoboTwin 2.0 by name: a base, and words that change it.

Source: the benchmark's evaluation scripts before and since August 2026; the tables in docs/robotwin.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightwam.config.robotwin_tasks import STEP_LIMITS
from lightwam.config.schema import EvalConfig, SimConfig
from lightwam.errors import ConfigError, did_you_mean

BOX_TASKS = ("stack_blocks_two", "stack_blocks_three", "blocks_ranking_rgb", "blocks_ranking_size", "handover_block")
"""the tasks whose objects are boxes: they need no downloaded assets"""
PUBLISHED_SIZE = (240, 320)
"""height and width of a picture, pixels"""
FIRST_EVALUATION_SEED = 100_000
"""seeds from here on are an evaluation's, lower ones a collection's: they differ in the textures of demo_randomized"""

Scene = Literal["demo_clean", "demo_randomized"]
Sentences = Literal["template", "seen", "unseen"]
Pictures = Literal["rasterised", "no-shadows", "ray-traced"]


@dataclass(frozen=True)
class RobotwinProtocol:
    """The constants of an evaluation that `SimConfig` does not have."""

    scene: Scene
    """RoboTwin's configuration of that name: background, clutter, light and the table's height are fixed or drawn"""
    sentences: Sentences
    """template: one sentence a task; the others: drawn for each episode from RoboTwin's list of that name"""
    pictures: Pictures
    published: bool
    """whether the benchmark's picture size and its limit of actions hold"""
    replan: int | None
    """steps to execute of a chunk; None: the recipe's eval.replan"""

    def to_dict(self) -> dict[str, Any]:
        """Return every constant, for a result file."""
        return dict(vars(self))


BASES: Mapping[str, RobotwinProtocol] = {
    "plain": RobotwinProtocol("demo_clean", "template", "rasterised", False, None),
    "robotwin-2026-06": RobotwinProtocol("demo_clean", "unseen", "ray-traced", True, 24),
    "robotwin-2026-08": RobotwinProtocol("demo_clean", "seen", "ray-traced", True, None),
}
"""name -> constants. "plain" is this library's own, for policies that are trained here; the others are the benchmark's
until and since August 2026."""
WORDS: Mapping[str, Mapping[str, str]] = {
    "randomized": {"scene": "demo_randomized"},
    "template": {"sentences": "template"},
    "seen": {"sentences": "seen"},
    "unseen": {"sentences": "unseen"},
    "rasterised": {"pictures": "rasterised"},
    "no-shadows": {"pictures": "no-shadows"},
    "ray-traced": {"pictures": "ray-traced"},
}
"""what may follow a base, after a slash each -> what it changes"""


def robotwin_protocol(name: str) -> RobotwinProtocol:
    """Return the constants of a name such as "plain" or "plain/randomized/seen"; "" is plain.

    Since August 2026 the benchmark draws sentences of randomized scenes from the unseen list. ConfigError for unknown
    names and words.
    """
    base, *words = (name or "plain").split("/")
    if base not in BASES:
        expected = f"one of {', '.join(BASES)}, and after it, as in plain/seen, any of {', '.join(WORDS)}"
        raise ConfigError(
            "unknown sim.protocol", got=repr(name), expected=expected, next_step=did_you_mean(base, BASES)
        )
    constants = BASES[base]
    if base == "robotwin-2026-08" and "randomized" in words:
        constants = replace(constants, sentences="unseen")
    for word in words:
        if word not in WORDS:
            where, expected = f"sim.protocol {name!r}", f"any of {', '.join(WORDS)}"
            step = did_you_mean(word, WORDS)
            raise ConfigError(
                "unknown word of a protocol", where=where, got=repr(word), expected=expected, next_step=step
            )
        constants = replace(constants, **WORDS[word])  # type: ignore[arg-type]
    return constants


def with_robotwin_protocol(
    sim: SimConfig, settings: EvalConfig, name: str, explicit: frozenset[str]
) -> tuple[SimConfig, EvalConfig]:
    """Return the settings with the constants of the protocol `name`; those that `explicit` names keep their values."""
    constants = robotwin_protocol(name)
    sim = replace(sim, protocol=name)
    if constants.published and not explicit & {"--sim.height", "--sim.width"}:
        sim = replace(sim, height=PUBLISHED_SIZE[0], width=PUBLISHED_SIZE[1])
    if constants.published and "--sim.max-steps" not in explicit:
        sim = replace(sim, max_steps=max(STEP_LIMITS.get(task, sim.max_steps) for task in sim.tasks))
    if "--eval.replan" not in explicit:
        settings = replace(settings, replan=constants.replan or settings.replan)
    return sim, settings
