"""LeRobot's robots and teleoperators by their type, as its own commands make them (LeRobot 0.6, Python 3.12).

The config is decoded by LeRobot itself, with the names that it has in LeRobot's own commands.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from lightwam.errors import ConfigError, SetupError, did_you_mean

CAMERA_FPS = 30


def make_lerobot_robot(kind: str, options: Mapping[str, Any], unit: str = "") -> Any:
    """Make the LeRobot robot of type `kind`, such as "so101_follower", not connected yet.

    `options` are fields of its config, nested for parts of it: {"port": ..., "cameras": {"front": {...}}}. `unit`: that
    of the data's joints, "degrees" or "-100..100", decides `use_degrees` of a robot that has it. SetupError if LeRobot
    or what this robot needs is not installed, ConfigError for an unknown type or option, or one against the unit.
    """
    return _make("robots", ("RobotConfig", "make_robot_from_config"), kind, options, unit)


def make_lerobot_teleoperator(kind: str, options: Mapping[str, Any], unit: str = "") -> Any:
    """Make the LeRobot teleoperator of type `kind`, such as "so101_leader"; raises as `make_lerobot_robot`."""
    return _make("teleoperators", ("TeleoperatorConfig", "make_teleoperator_from_config"), kind, options, unit)


def opencv_cameras(cameras: Sequence[str], sizes: Mapping[str, tuple[int, int]], fps: int) -> dict[str, Any]:
    """Return the configs of cameras given as NAME=INDEX or NAME=PATH, of these sizes (height, width).

    ConfigError for a word of another form, a camera without a size, or a name or place that is given twice.
    """
    configs: dict[str, Any] = {}
    for word in cameras:
        name, equals, place = word.partition("=")
        if not (name and equals and place):
            step = "for example --camera front=0 wrist=/dev/video2"
            raise ConfigError("--camera takes pairs NAME=INDEX or NAME=PATH", got=word, next_step=step)
        if name not in sizes:
            what = "the size of a camera's pictures must be known"
            raise ConfigError(what, where=f"camera {name}", next_step="--camera-size WIDTHxHEIGHT")
        height, width = sizes[name]
        index = int(place) if place.isdecimal() else place
        if name in configs or index in [config["index_or_path"] for config in configs.values()]:
            raise ConfigError("--camera must give each camera once", got=" ".join(cameras))
        configs[name] = {"type": "opencv", "index_or_path": index, "width": width, "height": height, "fps": fps}
    return configs


def nested_options(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Parse pairs KEY=VALUE, where a key may have dots (`cameras.front.rotation=90`); values are read as YAML.

    ConfigError for a word of another form; `option` is its name on the command line.
    """
    table: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        *path, last = key.split(".")
        place: Any = table
        for part in path:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not equals or not all((*path, last)) or not isinstance(place, dict):
            step = f"for example {option} use_degrees=false"
            raise ConfigError(f"{option} takes pairs KEY=VALUE", got=pair, next_step=step)
        place[last] = _value(value)
    return table


def merged(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested options with those of `more` in addition, or instead."""
    result = dict(options)
    for key, value in more.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _value(text: str) -> Any:
    """Read a number, a truth value or a text."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def with_unit(options: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return the options with `use_degrees` as the data's unit needs it; ConfigError if they say the opposite."""
    if unit not in ("degrees", "-100..100"):
        return dict(options)
    wanted = unit == "degrees"
    if options.get("use_degrees", wanted) != wanted:
        what, got = "the robot's joints must have the data's unit", f"use_degrees={options['use_degrees']}"
        raise ConfigError(what, got=got, expected=unit, next_step=f"use_degrees={str(wanted).lower()}, or leave it out")
    return {**options, "use_degrees": wanted}


def _make(package: str, names: tuple[str, str], kind: str, options: Mapping[str, Any], unit: str) -> Any:
    """`names`: of the config's base class, and of the function that makes the device."""
    if importlib.util.find_spec("lerobot") is None:
        step = "pip install 'lightwam[robot]' (Python 3.12 or newer)"
        raise SetupError("LeRobot's robots need a package that is not installed", got="lerobot", next_step=step)
    step = "pip install 'lightwam[robot]'; for motors of another make what LeRobot's documentation names"
    try:
        import draccus

        module = importlib.import_module(f"lerobot.{package}")
        failed = _register(package, kind)
        choices, make = (getattr(module, name) for name in names)
        known = choices.get_known_choices()
        if kind not in known:
            step = did_you_mean(kind, known)
            step += "".join(f"; lerobot.{package}.{name} cannot be imported: {why}" for name, why in failed.items())
            raise ConfigError(f"unknown type of LeRobot's {package}", got=repr(kind), next_step=step)
        if "use_degrees" in known[kind].__dataclass_fields__:
            options = with_unit(options, unit)
        return make(draccus.decode(choices, {"type": kind, **options}))
    except ImportError as error:
        raise SetupError(f"{kind} needs a package that is not installed", got=error, next_step=step) from error
    except (draccus.utils.DecodingError, TypeError, ValueError) as error:
        fields = ", ".join(sorted(known[kind].__dataclass_fields__))
        raise ConfigError(f"LeRobot refuses the config of {kind}", got=error, expected=f"fields {fields}") from error


def _register(package: str, kind: str) -> dict[str, str]:
    """Import LeRobot's own devices, and installed plugins, so that their types are known; return failed ones."""
    from lerobot.utils.import_utils import register_third_party_plugins

    failed = {}
    for base in ("cameras", package):
        module = importlib.import_module(f"lerobot.{base}")
        for info in pkgutil.iter_modules(module.__path__):
            try:
                importlib.import_module(f"{module.__name__}.{info.name}")
            except ImportError as error:  # of a device whose extra is not installed
                failed[info.name] = str(error)
    register_third_party_plugins()
    return {name: why for name, why in failed.items() if kind.partition("_")[0] in name}
