"""Checks of the observations that a policy is given; whatever does not fit is a WireError."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lightwam.data.codec import Codec
from lightwam.errors import WireError
from lightwam.types import Observation

ObservationLike = Observation | Mapping[str, Any]
"""an `Observation`, or a mapping with its fields, whose state may be any list of numbers"""
FIELDS, UNUSED_FIELDS = {"frames", "state", "instruction"}, {"episode", "step", "history"}
"""a Light-WAM acts on the present alone, so it needs no other field"""
MAX_NUMBERS_SHOWN = 64
"""longest state that an error shows in full"""
MAX_NORMALISED_STATE = 1e9
"""largest normalised state accepted; beyond it the model's numbers become infinite"""


def observation_fields(observation: ObservationLike, state_dim: int) -> Mapping[str, Any]:
    """Return frames, state and instruction by name; WireError when one is missing, unknown or of a wrong type.

    With `state_dim` 0 the state may be missing and is ignored.
    """
    fields = vars(observation) if isinstance(observation, Observation) else observation
    if state_dim == 0 and isinstance(fields, Mapping):
        fields = {**fields, "state": ()}
    if not isinstance(fields, Mapping) or set(fields) - UNUSED_FIELDS != FIELDS:
        got = sorted(map(str, fields)) if isinstance(fields, Mapping) else type(fields).__name__
        raise WireError("an observation must have exactly the fields frames, state and instruction", got=got)
    for name, kind in (("frames", Mapping), ("instruction", str)):
        if not isinstance(fields[name], kind):
            what, where = f"{name} must be a {kind.__name__}", f"observation.{name}"
            raise WireError(what, where=where, got=type(fields[name]).__name__)
    return fields


def read_states(states: Sequence[Any], state_dim: int) -> Float32[np.ndarray, "B P"]:
    """Return states in robot units as an array; WireError for one that is not `state_dim` finite numbers."""
    return np.stack([_state_array(state, state_dim) for state in states])


def encode_states(codec: Codec, states: Float32[np.ndarray, "B P"]) -> Float32[np.ndarray, "B P"]:
    """Normalise states; WireError for one far outside the training data."""
    with np.errstate(over="ignore"):  # infinities are refused below
        normalised = codec.encode_state(states)
    if (far := np.abs(normalised) > MAX_NORMALISED_STATE).any():
        dims = sorted(set(np.argwhere(far)[:, -1].tolist()))
        where, step = f"observation.state dims {dims}", "send it in the units of the training data"
        got = f"{np.abs(normalised).max():.3g} times the training range, at most {MAX_NORMALISED_STATE:g} fits"
        raise WireError("the state is far outside the training data", where=where, got=got, next_step=step)
    return normalised


def _state_array(state: Any, state_dim: int) -> Float32[np.ndarray, " P"]:
    expected, where = f"{state_dim} finite numbers", "observation.state"
    try:
        with np.errstate(over="ignore"):  # numbers too large for float32 become inf, and are refused below
            array = np.asarray(state, np.float32)
    except (TypeError, ValueError) as error:
        what, got = "the state must be a list of numbers", reprlib.repr(state)
        raise WireError(what, where=where, got=got, expected=expected) from error
    if array.shape != (state_dim,) or not np.isfinite(array).all():
        got = f"shape {array.shape}" + (f", {array.tolist()}" if array.size <= MAX_NUMBERS_SHOWN else "")
        raise WireError("the state does not fit the policy", where=where, got=got, expected=expected)
    return array
