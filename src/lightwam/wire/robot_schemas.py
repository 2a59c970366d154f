"""Robot schemas: those of clients in use, and TOML files that declare others.

Sources: openpi-client 0.1.2 and the clients around it, inspect-robots-xpolicylab 0.1.0, inspect-robots-yam 0.37.0,
vla-eval 0.8.0's benchmarks, and Light-WAM's robot client.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightwam.config.strict_json import added, from_dict
from lightwam.errors import ConfigError, did_you_mean
from lightwam.wire.robot_schema import CAMERA, GUIDE, ActionPart, KeyPath, RobotSchema, StatePart, Unit, fit_schema

_ARMS = tuple((f"{side}_{part}_joint_state", n) for side in ("left", "right") for part, n in (("arm", 6), ("ee", 1)))
_ALOHA = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
_LIBERO_GRIPPER = Unit(6, -2.0, 1.0)
"""policies have 1 open and 0 closed, LIBERO -1 open and 1 closed"""
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
            # the client has turned them already, because LIBERO renders upside down
            cameras={"agentview": ("observation/image",), "wrist": ("observation/wrist_image",)},
            action_dim=7,
            action_units=(_LIBERO_GRIPPER,),
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
        RobotSchema(
            "vla-eval-libero",
            prompt=(("task_description",),),
            state=(StatePart(("states",)),),  # no length, so that a run without a state gets LIBERO's gripper, too
            cameras={camera: ("images", camera) for camera in ("agentview", "wrist")},
            action_dim=7,
            action_units=(_LIBERO_GRIPPER,),
            protocol="vla-eval",
        ),
        RobotSchema(
            "vla-eval-robotwin",
            prompt=(("task_description",),),
            state=(StatePart(("joint_state",)),),
            cameras={camera: ("images", camera) for camera in _VISION},
            action_dim=14,
            protocol="vla-eval",
        ),
        RobotSchema(
            "vla-eval",
            prompt=(("task_description",),),
            state=(StatePart(("states",)),),
            any_camera=("images", CAMERA),
            protocol="vla-eval",
        ),
    )
}


def load_schema(name: str) -> RobotSchema:
    """Return the schema of a file (NAME.toml), or the built-in one; ConfigError if there is none."""
    if name.endswith(".toml"):
        return read_schema(Path(name))
    if name not in BUILTIN_SCHEMAS:
        raise ConfigError("unknown robot schema", got=repr(name), next_step=did_you_mean(name, BUILTIN_SCHEMAS))
    return BUILTIN_SCHEMAS[name]


def schemas_for(
    names: Sequence[str],
    cameras: Sequence[str],
    state_dim: int,
    action_dim: int,
    renames: Mapping[str, str],
    n_obs_steps: int = 0,
) -> list[RobotSchema]:
    """Return the schemas for the server of a run: `names` (or files), by default all built-in ones that fit the run.

    `n_obs_steps` is for a policy that needs episodes or a history (`RobotSchema.n_obs_steps`); the server's greeting
    asks for them. ConfigError if one of `names` does not fit, or none does.
    """
    declared = [load_schema(name) for name in names]
    fitting = []
    for schema in declared or BUILTIN_SCHEMAS.values():
        try:
            fitted = fit_schema(schema, cameras, state_dim, action_dim, renames)
            fitting.append(replace(fitted, n_obs_steps=n_obs_steps))
        except ConfigError:
            if declared:
                raise
    if not fitting:
        got = f"cameras {', '.join(cameras)}, {state_dim} numbers of state, {action_dim} of action"
        raise ConfigError("no robot schema fits the run", got=got, expected=", ".join(BUILTIN_SCHEMAS), next_step=GUIDE)
    return fitting


@dataclass(frozen=True)
class _StateTable:
    """A part of the state in a file."""

    keys: Any
    length: int | None = added(None)
    row: bool = added(False)


@dataclass(frozen=True)
class _SchemaTable:
    """A file's values; where a picture, part or prompt lies is a key or a list of keys."""

    name: str
    prompt: tuple[Any, ...]
    state: tuple[_StateTable, ...] = added(())
    cameras: Mapping[str, Any] | None = added(None)
    any_camera: Any = added(None)
    pictures: Literal["HWC", "CHW or HWC"] = added("HWC")
    turned: bool = added(False)
    action: tuple[ActionPart, ...] = added(())
    action_dim: int | None = added(None)
    state_units: tuple[Unit, ...] = added(())
    action_units: tuple[Unit, ...] = added(())
    reply: Literal["map", "list"] = added("map")


def read_schema(path: Path) -> RobotSchema:
    """Read the schema that a TOML file declares (docs/serving_robots.md); ConfigError with file, key and value."""
    try:
        file = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        step = "docs/serving_robots.md has an example"
        raise ConfigError("the TOML file cannot be read", where=path, got=str(error), next_step=step) from error
    table = from_dict(_SchemaTable, file, where := f"{path}: robot")

    def require(condition: object, key: str, got: object, expected: str) -> None:
        if not condition:
            raise ConfigError(f"{key} must be {expected}", where=f"{where}.{key}", got=repr(got))

    def key_path(key: str, value: Any) -> KeyPath:
        keys = value if isinstance(value, list) else [value]
        are_keys = bool(keys) and all(isinstance(name, str) and name for name in keys)
        require(are_keys, key, value, 'a key, or a list of keys from the top down: ["images", "cam_high"]')
        return tuple(keys)

    for key, value in file.items():
        require(value != [], key, value, "a list with at least one entry")
    require(table.name, "name", table.name, "a name")
    for i, part in enumerate(table.action):
        require(part.key, f"action[{i}].key", part.key, "a key")
    sizes = [(f"state[{i}].length", part.length) for i, part in enumerate(table.state)]
    sizes += [(f"action[{i}].length", part.length) for i, part in enumerate(table.action)]
    for key, size in (*sizes, ("action_dim", table.action_dim)):
        require(size is None or size >= 1, key, size, "1 or more")
    for key, units in (("state_units", table.state_units), ("action_units", table.action_units)):
        for i, unit in enumerate(units):
            require(unit.scale, f"{key}[{i}].scale", unit.scale, "a number other than 0")
    cameras = {camera: key_path(f"cameras.{camera}", value) for camera, value in (table.cameras or {}).items()}
    any_camera = None if table.any_camera is None else key_path("any_camera", table.any_camera)
    require(cameras or any_camera, "cameras", "none", "a table of cameras, unless there is any_camera")
    has_name = any_camera is None or CAMERA in any_camera
    require(has_name, "any_camera", table.any_camera, f'keys with "{CAMERA}" among them: ["images", "{CAMERA}"]')
    state = (StatePart(key_path(f"state[{i}].keys", p.keys), p.length, p.row) for i, p in enumerate(table.state))
    prompt = (key_path(f"prompt[{i}]", value) for i, value in enumerate(table.prompt))
    paths = {"prompt": tuple(prompt), "state": tuple(state), "cameras": cameras, "any_camera": any_camera}
    return RobotSchema(**vars(table) | paths)
