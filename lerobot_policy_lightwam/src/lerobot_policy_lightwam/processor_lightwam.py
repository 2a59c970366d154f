"""LeRobot's standard steps around the policy, with the dataset's statistics as lightwam's codec uses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_lightwam.configuration_lightwam import NORMS, LightWAMConfig
from lightwam import DatasetError
from lightwam.config.schema import NormKind
from lightwam.data.codec import affine
from lightwam.data.statistics import FeatureStats

REQUIRED: dict[NormKind, tuple[str, ...]] = {
    "identity": (),
    "min_max": ("min", "max"),
    "z_score": ("min", "max", "mean", "std"),
    "quantile": ("min", "max", "q01", "q99"),
}
"""statistics that a normalisation needs"""
Stats = Mapping[str, Mapping[str, Any]]


def make_lightwam_pre_post_processors(
    config: LightWAMConfig, dataset_stats: Stats | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Return LeRobot's own steps under their own names: rename, batch, device, normalise; unnormalise, to the CPU.

    DatasetError if the dataset lacks statistics that the normalisation needs.
    """
    stats = None if dataset_stats is None else codec_stats(config, dataset_stats)
    return make_default_pre_post_processors(config, stats, normalizer_device=config.device)


def codec_stats(config: LightWAMConfig, stats: Stats) -> dict[str, Mapping[str, Any]]:
    """Return statistics with which LeRobot's formulas equal the codec's.

    LeRobot divides a constant dimension by 1e-8, so that a sensor's last bit becomes a huge number; the codec gives it
    the scale 1, and a dimension that rarely moves its full range (see `lightwam.data.codec.affine`).
    """
    kinds = {mode: kind for kind, mode in NORMS.items()}
    converted = dict(stats)
    for key, feature in ((OBS_STATE, "STATE"), (ACTION, "ACTION")):
        kind = kinds[config.normalization_mapping[feature]]
        if kind != "identity":
            offset, scale = affine(kind, feature_stats(stats, key, kind))
            low, high = offset - scale, offset + scale
            rows = {"min": low, "max": high, "mean": offset, "std": scale, "q01": low, "q99": high}
            converted[key] = dict(stats[key]) | {name: rows[name] for name in rows if name in REQUIRED[kind]}
    return converted


def feature_stats(stats: Stats, key: str, kind: NormKind) -> FeatureStats:
    """Return a feature's statistics as the codec's; those that `kind` does not need may be missing and are NaN."""
    measured = stats.get(key, {})
    if missing := [name for name in REQUIRED[kind] if name not in measured]:
        where, step = f"meta/stats.json {key}", "measure them with LeRobot's augment_dataset_quantile_stats.py"
        what = f"the dataset lacks the statistics {', '.join(missing)}"
        raise DatasetError(what, where=where, got=sorted(measured), next_step=step)
    rows = {name: np.asarray(value, np.float64).reshape(-1) for name, value in measured.items()}
    dims = len(rows["min"])
    names = [field.name for field in fields(FeatureStats) if field.name != "count"]
    count = int(rows["count"][0]) if "count" in rows else 1
    return FeatureStats(**{name: rows.get(name, np.full(dims, np.nan)) for name in names}, count=count)
