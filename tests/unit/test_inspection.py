"""What a person who connects a robot is told of its first messages."""

from typing import Any

import numpy as np

from lightwam.wire import robot_schemas
from lightwam.wire.inspection import MessageCheck, inspect
from lightwam.wire.robot_schema import fit_schema

RNG = np.random.default_rng(0)
SCHEMA = fit_schema(robot_schemas.load_schema("aloha"), ("cam_high", "cam_left_wrist"), 14, 14)


def message(**changes: Any) -> dict[str, Any]:
    cameras = {camera: RNG.integers(0, 256, (3, 6, 8), np.uint8) for camera in ("cam_high", "cam_left_wrist")}
    return {"images": cameras, "state": np.linspace(-1, 2, 14), "prompt": "fold the towel"} | changes


def by_name(report: MessageCheck) -> dict[str, Any]:
    return {reading.name: reading for reading in report.fields}


def test_a_message_that_fits() -> None:
    report = inspect(message(), SCHEMA)
    assert report.fits
    assert report.unused == ()
    found = {reading.name: reading.value for reading in report.fields}
    assert found["camera cam_high"].startswith("6 x 8 RGB, ")
    assert found["state"] == "14 numbers, -1 to 2"
    assert found["instruction"] == "'fold the towel'"
    assert not any(reading.error or reading.warning for reading in report.fields)
    assert report.lines()[-1] == "the message fits the robot schema 'aloha'"
    assert all(line.startswith("ok") for line in report.lines()[:-1])


def test_all_errors_of_a_message_are_reported() -> None:
    report = inspect({"image": {}, "state": np.full(14, np.nan), "prompts": "x"}, SCHEMA)
    assert not report.fits
    assert len([reading for reading in report.fields if reading.error]) == 4
    told = "\n".join(report.lines())
    for words in ("did you mean 'image'", "must be finite", "instruction is missing", "does not fit", "unused: image"):
        assert words in told


def test_suspicious_values_get_a_warning_and_fit() -> None:
    pictures = {"cam_high": np.full((6, 8, 3), 90, np.uint8), "cam_left_wrist": RNG.integers(0, 2, (6, 8, 3), np.uint8)}
    report = inspect(message(images=pictures, prompt="  ", state=np.zeros(14)), SCHEMA)
    assert report.fits
    found = by_name(report)
    assert "one colour" in found["camera cam_high"].warning
    assert "almost black" in found["camera cam_left_wrist"].warning
    assert "all are zero" in found["state"].warning
    assert "empty" in found["instruction"].warning
    assert sum(line.startswith("check") for line in report.lines()) == 4


def test_unused_keys_are_listed() -> None:
    more = message(env_idx=3, info={"frequency": 30, "deep": {"x": np.zeros(3)}}, empty={})
    more["images"]["cam_low"] = np.zeros((6, 8, 3), np.uint8)
    report = inspect(more, SCHEMA)
    assert report.fits
    assert report.unused == (
        "images > cam_low (uint8 (6, 8, 3))",
        "env_idx (3)",
        "info > frequency (30)",
        "info > deep > x (float64 (3,))",
        "empty ({})",
    )
    assert "unused: images > cam_low" in "\n".join(report.lines())


def test_any_message_can_be_inspected() -> None:
    for odd in (None, [], "text", 5, {}, np.zeros(3), {"images": 5, "state": None, "prompt": []}):
        report = inspect(odd, SCHEMA)
        assert not report.fits
        assert report.lines()
