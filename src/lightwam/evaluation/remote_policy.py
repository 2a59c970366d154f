"""A policy that another program serves, evaluated as one of our own: any server that speaks openpi's protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.config.checks import check_simulation
from lightwam.config.schema import EvalConfig, Recipe, SimConfig
from lightwam.errors import ConfigError, WireError
from lightwam.robot.client import Client
from lightwam.sim import registry
from lightwam.types import Observation
from lightwam.wire.openpi import MESSAGE_BYTES
from lightwam.wire.robot_schema import GUIDE, RobotSchema, fit_schema


class RemotePolicy:
    """What `evaluate` needs of a policy, asked of a server, one observation after the other.

    The server is told what a robot of a family would tell it, and its answers are read as such a robot would.
    """

    def __init__(
        self,
        client: Client,
        recipe: Recipe,
        schema: RobotSchema,
        renames: Mapping[str, str] | None = None,
        label: str = "",
    ) -> None:
        """Of the recipe only simulator and evaluation count; `renames` are as `wire.schema.fit_schema` has them.

        `label` goes into the result, as a server may say nothing of itself. ConfigError for a family whose robots
        want actions as maps, which openpi's protocol has not, or whose state has two parts of unknown length.
        """
        if schema.action:
            raise ConfigError("openpi's servers answer with plain numbers", where=f"{schema.name}: action",
                              got=[part.key for part in schema.action], expected="no parts",
                              next_step=f"choose another family; {GUIDE}")  # fmt: skip
        if sum(part.length is None for part in schema.state) > 1:
            raise ConfigError("how the state is divided is not known", where=f"{schema.name}: state",
                              expected="a length of every part but one", next_step=GUIDE)  # fmt: skip
        self.recipe, self._client, self._label = recipe, client, label
        self._declared, self._renames = schema, dict(renames or {})
        self._schema = schema
        self._said: Any = None
        """what the server said of itself when it was first heard"""

    def identity(self) -> dict[str, Any]:
        """The label, what the server says of itself, and the family; not where it listens. Connects if need be."""
        schema = _plain(asdict(self._declared)) | {"renames": self._renames}
        return {"label": self._label, "server": self._greeting(), "family": schema}

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """ConfigError where they do not fit each other, or the family does not fit the simulator."""
        check_simulation(sim, settings)
        world = registry.make_simulator(sim, sim.tasks[0])
        self._schema = fit_schema(self._declared, sim.cameras, world.state_dim, world.action_dim, self._renames)

    def act_batch(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        """The server's chunks, in the simulator's units.

        ConnectionLost when the server is gone, WireError for what it refuses or answers wrongly, and when it is another
        one than before.
        """
        chunks = [self._schema.chunk(self._client.act(self._schema.message(seen))) for seen in observations]
        if len(lengths := {len(chunk) for chunk in chunks}) > 1:
            raise WireError("the server's chunks differ in length", where=self._client.url, got=sorted(lengths),
                            expected="one length")  # fmt: skip
        self._greeting()
        return np.stack(chunks)

    def _greeting(self) -> Any:
        """What the server says of itself; WireError when that has changed, as another policy may answer then."""
        said = _plain({key: value for key, value in self._client.metadata.items() if key != MESSAGE_BYTES})
        self._said = said if self._said is None else self._said
        if said != self._said:
            raise WireError("another server answers now", where=self._client.url, got=said, expected=self._said,
                            next_step="start the first one again, or evaluate into another folder")  # fmt: skip
        return said


def _plain(value: Any) -> Any:
    """As JSON has it: arrays become lists, and what it has no word for its text."""
    return json.loads(json.dumps(value, sort_keys=True, default=_listed))


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)
