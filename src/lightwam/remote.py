"""A policy that another program serves, evaluated as one of our own: any server that speaks openpi's protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.checks import check_world
from lightwam.config import EvalConfig, Recipe, SimConfig
from lightwam.errors import ConfigError, WireError
from lightwam.robot.client import Client
from lightwam.sim import base
from lightwam.types import Observation
from lightwam.wire.family import GUIDE, Family, fitted


class RemotePolicy:
    """What `evaluate` needs of a policy, asked of a server, one observation after the other.

    The server is told what a robot of a family would tell it, and its answers are read as such a robot would.
    """

    def __init__(
        self, client: Client, recipe: Recipe, family: Family, renames: Mapping[str, str] | None = None
    ) -> None:
        """Of the recipe only simulator and evaluation count; `renames` are as `wire.family.fitted` has them.

        ConfigError for a family whose robots want actions as maps, which openpi's protocol has not.
        """
        if family.action:
            raise ConfigError("openpi's servers answer with plain numbers", where=f"{family.name}: action",
                              got=[part.key for part in family.action], expected="no parts",
                              next_step=f"choose another family; {GUIDE}")  # fmt: skip
        self.recipe, self._client, self._declared, self._renames = recipe, client, family, dict(renames or {})
        self._family = family

    def identity(self) -> dict[str, Any]:
        """What the server says of itself, and the family; where it listens is no part of it. Connects if need be."""
        said = json.dumps(self._client.metadata, default=_plain, sort_keys=True)
        return {"server": json.loads(said), "family": self._declared.name, "renames": self._renames}

    def accept(self, sim: SimConfig, settings: EvalConfig) -> None:
        """ConfigError where they do not fit each other, or the family does not fit the simulator."""
        check_world(sim, settings)
        world = base.make(sim, sim.tasks[0])
        self._family = fitted(self._declared, sim.cameras, world.state_dim, world.action_dim, self._renames)

    def act_batch(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        """The server's chunks, in the simulator's units.

        ConnectionLost when the server is gone, WireError for what it refuses or answers wrongly.
        """
        chunks = [self._family.chunk(self._client.act(self._family.message(seen))) for seen in observations]
        if len(lengths := {len(chunk) for chunk in chunks}) > 1:
            raise WireError("the server's chunks differ in length", where=self._client.url, got=sorted(lengths),
                            expected="one length")  # fmt: skip
        return np.stack(chunks)


def _plain(value: Any) -> Any:
    """What JSON has no word for: arrays become lists, the rest its text."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
