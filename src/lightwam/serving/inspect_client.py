"""A server that looks at what a robot's client sends, and answers nothing, so that no robot moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.errors import WireError
from lightwam.serving.access import Keys
from lightwam.serving.sentences import CheckSentence
from lightwam.serving.server import Server
from lightwam.serving.settings import Serving
from lightwam.types import Observation
from lightwam.wire.inspection import MessageCheck, inspect
from lightwam.wire.robot_schema import RobotSchema


async def inspect_client(
    schemas: Sequence[RobotSchema],
    settings: Serving,
    keys: Keys,
    num_messages: int,
    say: Callable[[str], None] = print,
    ready: Callable[[Server], None] | None = None,
    check_sentence: CheckSentence | None = None,
) -> bool:
    """Prints what is in the first messages, by the family that they fit best; whether each can be answered."""
    fits: list[bool] = []

    def on_message(message: Mapping[str, Any] | WireError, protocol: str) -> None:
        if isinstance(message, WireError):
            fit, lines = False, ["it cannot be read:", *str(message).splitlines()]
        else:
            report = min((inspect(message, schema, check_sentence) for schema in schemas), key=misfit)
            fit, lines = report.fits, report.lines()
        fits.append(fit)
        say("\n".join([f"message {len(fits)}, over {protocol}:", *lines]))
        if len(fits) >= num_messages:
            server.stopping.set()
        if not isinstance(message, WireError):
            raise WireError(f"this is a check, and the message {'fits' if fit else 'does not fit'}",
                            where="lightwam check client", next_step="lightwam serve answers")  # fmt: skip

    metadata = {"policy": "none: a check"}
    server = Server(_never, 0, schemas, metadata, settings, keys, on_message=on_message, on_refusal=say)
    await server.run(ready)
    return bool(fits) and all(fits)


def misfit(report: MessageCheck) -> tuple[int, int]:
    """Return how badly a family fits a message: the number of faults, then the number of unread entries."""
    return sum(bool(reading.error) for reading in report.fields), len(report.unused)


def _never(observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
    raise AssertionError("nothing is asked of a check")
