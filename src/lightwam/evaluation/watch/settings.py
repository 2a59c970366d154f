"""Settings of `lightwam watch`, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WatchConfig:
    """How the watch is calibrated and tested; counts are episodes of each task."""

    undisturbed: int = 20
    """undisturbed episodes a task, for the calibration"""
    trials: int = 12
    """undisturbed episodes a task for the test; each disturbance is tried on the same seeds"""
    false_alarms: float = 0.05
    """share of undisturbed episodes that may raise an alarm"""
    workers: int = 2
    """simulators that run at once"""
