"""An `EvaluablePolicy` that asks a server which speaks openpi's protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.config.checks import check_simulation
from lightwam.config.schema import EvalConfig, Recipe, SimConfig
from lightwam.errors import ConfigError, WireError
from lightwam.robot.client import Client
from lightwam.robot.player import check_chunk
from lightwam.sim import registry
from lightwam.types import Observation
from lightwam.wire.openpi import MESSAGE_BYTES, obs_steps
from lightwam.wire.robot_schema import GUIDE, RobotSchema, fit_schema


class RemotePolicy:
    """A server's policy, which gets one observation at a time, in the format of a robot schema.

    If the server's greeting has `n_obs_steps`, its messages also have episode, step and history (docs/serving.md).
    """

    def __init__(
        self,
        client: Client,
        recipe: Recipe,
        schema: RobotSchema,
        renames: Mapping[str, str] | None = None,
        label: str = "",
    ) -> None:
        """Of the recipe only simulator and evaluation count; `renames` are those of `wire.robot_schema.fit_schema`.

        `label` goes into the result, as a server may not describe itself. Raises ConfigError for a schema whose actions
        are maps, which openpi's protocol does not have, or whose state has two parts of unknown length.
        """
        if schema.action:
            what, where = "a schema for openpi's servers must not divide actions into parts", f"{schema.name}: action"
            keys, step = [part.key for part in schema.action], f"choose another robot schema; {GUIDE}"
            raise ConfigError(what, where=where, got=keys, next_step=step)
        if sum(part.length is None for part in schema.state) > 1:
            where = f"{schema.name}: state"
            raise ConfigError("all parts of a state but one must have a length", where=where, next_step=GUIDE)
        self.recipe, self._client, self._label = recipe, client, label
        self._schema, self._declared, self._renames = schema, schema, dict(renames or {})
        self._first_metadata: Any = None
        """the server's own, when it first answered"""

    @property
    def n_obs_steps(self) -> int:
        """Control steps that the server's policy acts on, as its greeting said to `check_evaluation`; 1 before that."""
        return self._schema.n_obs_steps or 1

    def identity(self) -> dict[str, Any]:
        """Return the label, the server's metadata and the robot schema, but no address. Connects if need be."""
        schema = _plain(asdict(self._declared)) | {"renames": self._renames}
        del schema["n_obs_steps"]  # is the server's
        return {"label": self._label, "server": self._metadata(), "family": schema}

    def check_evaluation(self, sim: SimConfig, settings: EvalConfig) -> None:
        """Raise ConfigError if they do not fit each other, or the robot schema does not fit the simulator; connect."""
        check_simulation(sim, settings)
        simulator = registry.make_simulator(sim, sim.tasks[0])
        schema = fit_schema(self._declared, sim.cameras, simulator.state_dim, simulator.action_dim, self._renames)
        self._schema = replace(schema, n_obs_steps=obs_steps(self._metadata(), self._client.url))

    def act_batch(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "B H A"]:
        """Return the server's chunks, in the simulator's units.

        Raises ConnectionLost when the server is gone, and WireError for refusals, wrong answers, and another server.
        """
        schema = self._schema
        answers = [self._client.act(schema.message(observation)) for observation in observations]
        chunks = [schema.chunk(check_chunk(answer, schema.action_dim, ())) for answer in answers]
        if len(lengths := {len(chunk) for chunk in chunks}) > 1:
            raise WireError("the server's chunks must have one length", where=self._client.url, got=sorted(lengths))
        self._metadata()
        return np.stack(chunks)

    def _metadata(self) -> Any:
        """Return how the server describes itself; WireError if that has changed, as another policy may answer then."""
        metadata = _plain({key: value for key, value in self._client.metadata.items() if key != MESSAGE_BYTES})
        first = self._first_metadata = metadata if self._first_metadata is None else self._first_metadata
        if metadata != first:
            what, step = "another server answers now", "start the first one again, or evaluate into another folder"
            raise WireError(what, where=self._client.url, got=metadata, expected=first, next_step=step)
        return metadata


def _plain(value: Any) -> Any:
    """Convert to JSON values: arrays to lists, anything unknown to its text."""

    def convert(inner: Any) -> Any:
        return inner.tolist() if isinstance(inner, (np.ndarray, np.generic)) else str(inner)

    return json.loads(json.dumps(value, sort_keys=True, default=convert))
