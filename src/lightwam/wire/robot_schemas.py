"""The families that clients in use belong to, and files that declare another one.

Sources: openpi-client 0.1.2 and the clients around it, inspect-robots-xpolicylab 0.1.0, inspect-robots-yam 0.37.0, and
Light-WAM's robot client.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightwam.errors import ConfigError, did_you_mean
from lightwam.wire.robot_schema import CAMERA, GUIDE, ActionPart, KeyPath, RobotSchema, StatePart, Unit, fit_schema

_ARMS = tuple((f"{side}_{part}_joint_state", n) for side in ("left", "right") for part, n in (("arm", 6), ("ee", 1)))
_ALOHA = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
_VISION = {"head_camera": "cam_head", "left_camera": "cam_left_wrist", "right_camera": "cam_right_wrist"}

BUILTIN_SCHEMAS: Mapping[str, RobotSchema] = {
    one.name: one
    for one in (
        RobotSchema(
            "light-wam",
            prompt=(("prompt",), ("task_description",), ("instruction",)),
            state=(StatePart(("state",)),),
            any_camera=("images", CAMERA),
            pictures="CHW or HWC",
        ),
        RobotSchema(
            "libero",
            prompt=(("prompt",),),
            state=(StatePart(("observation/state",), 8),),
            # the client has turned them already, as LIBERO draws them upside down
            cameras={"agentview": ("observation/image",), "wrist": ("observation/wrist_image",)},
            action_dim=7,
            # policies say 1 open and 0 closed, LIBERO wants -1 open and 1 closed
            action_units=(Unit(6, -2.0, 1.0),),
        ),
        RobotSchema(
            "aloha",
            prompt=(("prompt",),),
            state=(StatePart(("state",), 14),),
            cameras={camera: ("images", camera) for camera in _ALOHA},
            pictures="CHW or HWC",
            action_dim=14,
        ),
        RobotSchema(
            "droid",
            prompt=(("prompt",),),
            state=(StatePart(("observation/joint_position",), 7), StatePart(("observation/gripper_position",), 1)),
            cameras={name: (f"observation/{name}",) for name in ("exterior_image_1_left", "wrist_image_left")},
            action_dim=8,
        ),
        RobotSchema(
            "xpolicylab",
            prompt=(("instruction",), ("instructions",)),
            state=tuple(StatePart(("state", key), length) for key, length in _ARMS),
            cameras={ours: ("vision", theirs, "color") for ours, theirs in _VISION.items()},
            any_camera=("vision", CAMERA, "color"),
            action=tuple(ActionPart(key, length) for key, length in _ARMS),
        ),
        RobotSchema("yam", prompt=(("instruction",),), state=(StatePart(("state",)),), any_camera=(CAMERA,)),
    )
}


def builtin_schema(name: str) -> RobotSchema:
    """Return a built-in schema; ConfigError with the nearest names for another name."""
    if name not in BUILTIN_SCHEMAS:
        raise ConfigError("unknown robot schema", got=repr(name), next_step=did_you_mean(name, BUILTIN_SCHEMAS))
    return BUILTIN_SCHEMAS[name]


def load_schema(name: str) -> RobotSchema:
    """The family that a file (NAME.toml) declares, or the built-in one; ConfigError where there is none."""
    return read(Path(name)) if name.endswith(".toml") else builtin_schema(name)


def schemas_for(
    names: Sequence[str], cameras: Sequence[str], state_dim: int, action_dim: int, renames: Mapping[str, str]
) -> list[RobotSchema]:
    """The families that a server of a run understands: those named (or declared in files), else all that fit the run.

    ConfigError when one that was named does not fit, or none does.
    """
    declared = [load_schema(name) for name in names]
    fitting = []
    for schema in declared or BUILTIN_SCHEMAS.values():
        try:
            fitting.append(fit_schema(schema, cameras, state_dim, action_dim, renames))
        except ConfigError:
            if declared:
                raise
    if not fitting:
        got = f"cameras {', '.join(cameras)}, {state_dim} numbers of state, {action_dim} of action"
        raise ConfigError("no robot schema fits the run", got=got, expected=", ".join(BUILTIN_SCHEMAS), next_step=GUIDE)
    return fitting


def read(path: Path) -> RobotSchema:
    """The family that a TOML file declares (docs/serving_robots.md); ConfigError with file, key, got and expected."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("the family's file cannot be read", where=path, got=str(error), expected="a TOML file",
                          next_step="docs/serving_robots.md has one to start from") from error  # fmt: skip
    return _File(path).schema(table)


class _File:
    """Reads the keys of one file; whatever is wrong is told with the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def schema(self, table: Mapping[str, Any]) -> RobotSchema:
        self.known(table, "", needed=("name", "prompt"),
                   optional=("state", "cameras", "any_camera", "pictures", "turned", "action", "action_dim",
                             "state_units", "action_units", "reply"))  # fmt: skip
        if not table.get("cameras") and "any_camera" not in table:
            raise self.wrong("cameras", "none", "a table of cameras, or any_camera")
        cameras = self.of("cameras", table.get("cameras", {}), dict, "a table: the run's camera = where it lies")
        layout = table.get("pictures", "HWC")
        if layout not in ("HWC", "CHW or HWC"):
            raise self.wrong("pictures", repr(layout), '"HWC" or "CHW or HWC"')
        pictures: Literal["HWC", "CHW or HWC"] = layout
        form = table.get("reply", "map")
        if form not in ("map", "list"):
            raise self.wrong("reply", repr(form), '"map" or "list"')
        reply: Literal["map", "list"] = form
        return RobotSchema(
            self.of("name", table["name"], str, "a name"),
            prompt=tuple(self.keys(f"prompt[{i}]", one) for i, one in enumerate(self.many("prompt", table))),
            state=tuple(self.state(f"state[{i}]", one) for i, one in enumerate(self.many("state", table))),
            cameras={camera: self.keys(f"cameras.{camera}", one) for camera, one in cameras.items()},
            any_camera=self.pattern(table["any_camera"]) if "any_camera" in table else None,
            pictures=pictures,
            turned=self.of("turned", table.get("turned", False), bool, "true or false"),
            action=tuple(self.action(f"action[{i}]", one) for i, one in enumerate(self.many("action", table))),
            action_dim=self.size("action_dim", table["action_dim"]) if "action_dim" in table else None,
            state_units=self.units("state_units", table),
            action_units=self.units("action_units", table),
            reply=reply,
        )

    def wrong(self, key: str, got: object, expected: object, next_step: str = "") -> ConfigError:
        return ConfigError("a family's file is wrong", where=f"{self.path}: {key}", got=got, expected=expected,
                           next_step=next_step)  # fmt: skip

    def known(self, table: Any, key: str, *, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        if not isinstance(table, dict):
            raise self.wrong(key, repr(table), f"a table with {', '.join(needed)}")
        for one in table:
            if one not in (*needed, *optional):
                raise self.wrong(f"{key}.{one}".lstrip("."), "an unknown key", ", ".join((*needed, *optional)),
                                 did_you_mean(one, (*needed, *optional)))  # fmt: skip
        if missing := [one for one in needed if one not in table]:
            raise self.wrong(f"{key}.{missing[0]}".lstrip("."), "nothing", "a value; it is needed")

    def of(self, key: str, value: Any, kind: type, expected: str) -> Any:
        if not isinstance(value, kind) or value == "":
            raise self.wrong(key, repr(value), expected)
        return value

    def many(self, key: str, table: Mapping[str, Any]) -> list[Any]:
        if key not in table:
            return []
        found = self.of(key, table[key], list, "a list")
        if not found:
            raise self.wrong(key, "an empty list", "at least one entry")
        return list(found)

    def keys(self, key: str, value: Any) -> KeyPath:
        found = value if isinstance(value, list) else [value]
        if not found or any(not isinstance(one, str) or not one for one in found):
            raise self.wrong(key, repr(value), 'a key, or a list of keys from the top down: ["images", "cam_high"]')
        return tuple(found)

    def pattern(self, value: Any) -> KeyPath:
        found = self.keys("any_camera", value)
        if CAMERA not in found:
            raise self.wrong("any_camera", repr(value), f'keys, one of them "{CAMERA}": ["images", "{CAMERA}"]')
        return found

    def size(self, key: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise self.wrong(key, repr(value), "a whole number, at least 1")
        return int(value)

    def state(self, key: str, value: Any) -> StatePart:
        self.known(value, key, needed=("keys",), optional=("length", "row"))
        length = self.size(f"{key}.length", value["length"]) if "length" in value else None
        row = self.of(f"{key}.row", value.get("row", False), bool, "true or false")
        return StatePart(self.keys(f"{key}.keys", value["keys"]), length, row)

    def action(self, key: str, value: Any) -> ActionPart:
        self.known(value, key, needed=("key", "length"))
        return ActionPart(
            self.of(f"{key}.key", value["key"], str, "a key"), self.size(f"{key}.length", value["length"])
        )

    def units(self, key: str, table: Mapping[str, Any]) -> tuple[Unit, ...]:
        units = []
        for i, one in enumerate(self.many(key, table)):
            place = f"{key}[{i}]"
            self.known(one, place, needed=("dim", "scale", "offset"))
            if type(one["dim"]) is not int:
                raise self.wrong(f"{place}.dim", repr(one["dim"]), "a whole number; -1 is the last")
            for name in ("scale", "offset"):
                if type(one[name]) not in (int, float) or (name == "scale" and not one[name]):
                    raise self.wrong(f"{place}.{name}", repr(one[name]), "a number" + ", not 0" * (name == "scale"))
            units.append(Unit(one["dim"], float(one["scale"]), float(one["offset"])))
        return tuple(units)
