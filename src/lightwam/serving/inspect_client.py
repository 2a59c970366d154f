"""A server that checks a robot's client: it prints what arrives and sends no actions, so that no robot moves."""

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
from lightwam.wire.inspection import inspect
from lightwam.wire.robot_schema import RobotSchema, schemas_of


async def inspect_client(
    schemas: Sequence[RobotSchema],
    settings: Serving,
    keys: Keys,
    num_messages: int,
    say: Callable[[str], None],
    ready: Callable[[Server], None] | None = None,
    check_sentence: CheckSentence | None = None,
) -> bool:
    """Print a check of the first messages, each with the schema that it fits best; returns whether all fit."""
    fits: list[bool] = []

    def on_message(message: Mapping[str, Any] | WireError, protocol: str) -> None:
        if isinstance(message, WireError):
            fit, lines = False, ["it cannot be decoded:", *str(message).splitlines()]
        else:
            checks = [inspect(message, schema, check_sentence) for schema in schemas_of(schemas, protocol)]
            check = min(checks, key=lambda check: (sum(bool(field.error) for field in check.fields), len(check.unused)))
            fit, lines = check.fits, check.lines()
        fits.append(fit)
        say("\n".join([f"message {len(fits)}, over {protocol}:", *lines]))
        if len(fits) >= num_messages:
            server.stopping.set()
        if not isinstance(message, WireError):
            what = f"this is a check, and the message {'fits' if fit else 'does not fit'}"
            raise WireError(what, where="lightwam check client", next_step="lightwam serve answers")

    metadata = {"policy": "none: a check"}
    server = Server(_never, 0, schemas, metadata, settings, keys, on_message=on_message, on_refusal=say)
    await server.run(ready)
    return bool(fits) and all(fits)


def _never(observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
    raise AssertionError("a check never runs a policy")
