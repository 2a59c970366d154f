"""Options of LeRobot's robots; the robots themselves are made in the plugin's tests, with LeRobot."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from lightwam.errors import ConfigError, SetupError
from lightwam.robot.lerobot_devices import (
    make_lerobot_robot,
    merged,
    nested_options,
    opencv_cameras,
    with_unit,
)


def test_cameras_have_the_size_of_the_data() -> None:
    configs = opencv_cameras(("front=0", "wrist=/dev/video2"), {"front": (480, 640), "wrist": (240, 320)}, 30)
    front = {"type": "opencv", "index_or_path": 0, "width": 640, "height": 480, "fps": 30}
    assert configs["front"] == front
    assert configs["wrist"] == front | {"index_or_path": "/dev/video2", "width": 320, "height": 240}
    with pytest.raises(ConfigError, match="size of a camera"):
        opencv_cameras(("side=1",), {"front": (480, 640)}, 30)
    for word in ("front", "front=", "=0"):
        with pytest.raises(ConfigError, match="--camera takes pairs"):
            opencv_cameras((word,), {"front": (480, 640)}, 30)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("none", None), ("5", 5), ("0.5", 0.5), ("/dev/x", "/dev/x"), ("a=b", "a=b")],
)
def test_values_of_options(text: str, value: Any) -> None:
    assert nested_options((f"key={text}",), "--robot-options") == {"key": value}


def test_options_are_nested_and_merged() -> None:
    options = nested_options(("cameras.front.rotation=90", "use_degrees=false"), "--robot-options")
    assert options == {"cameras": {"front": {"rotation": 90}}, "use_degrees": False}
    whole = merged({"port": "/dev/x", "cameras": {"front": {"fps": 30}, "wrist": {}}}, options)
    front = {"fps": 30, "rotation": 90}
    assert whole == {"port": "/dev/x", "use_degrees": False, "cameras": {"front": front, "wrist": {}}}
    for word in ("use_degrees", "=3", "a..b=1", ".a=1"):
        with pytest.raises(ConfigError, match="--robot-options takes pairs"):
            nested_options((word,), "--robot-options")
    with pytest.raises(ConfigError, match="--robot-options takes pairs"):
        nested_options(("cameras=1", "cameras.front.fps=30"), "--robot-options")


def test_the_unit_is_that_of_the_data() -> None:
    """LeRobot's default is degrees; older datasets have -100 to 100, and a robot would go elsewhere."""
    assert with_unit({"port": "x"}, "-100..100") == {"port": "x", "use_degrees": False}
    assert with_unit({"use_degrees": True}, "degrees") == with_unit({}, "degrees") == {"use_degrees": True}
    assert with_unit({}, "") == with_unit({}, "radians") == {}
    with pytest.raises(ConfigError, match=r"the data's unit\n  got: use_degrees=True\n  expected: -100\.\.100"):
        with_unit({"use_degrees": True}, "-100..100")


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="LeRobot is installed")
def test_without_lerobot_its_package_is_named() -> None:
    with pytest.raises(SetupError, match=r"got: lerobot\n  next: pip install 'lightwam\[robot\]' \(Python 3\.12"):
        make_lerobot_robot("so101_follower", {"port": "/dev/ttyACM0"})
