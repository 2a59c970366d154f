"""JSON or TOML values to frozen dataclasses and back, strictly: the project's one reader of structured files.

An unknown key, a missing key and a value of another type are errors that name the key. Two kinds of fields keep older
files readable: one that was `added` later may be missing, one that was `renamed` may have its old name. A field that is
`stored_as` another name has that one in all files.
"""

from __future__ import annotations

import dataclasses
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, TypeVar

from lightwam.errors import ConfigError, LightwamError, did_you_mean

Config = TypeVar("Config")


def added(default: Any) -> Any:
    """Declare a field that may be missing; `default` must give the behaviour that files without it had."""
    return field(default=default, metadata={"added": True})


def renamed(old: str, default: Any, *, added: bool = False) -> Any:
    """Declare a field that older files have under the name `old`; with `added`, still older ones lack it."""
    return field(default=default, metadata={"old": old, "added": added})


def stored_as(key: str) -> Any:
    """Declare a field that files have under the name `key`."""
    return field(metadata={"key": key})


def old_names(kind: Any, prefix: str = "") -> dict[str, str]:
    """Map the dotted old name of every renamed field in a config's class, nested ones included, to the present one."""
    hints = typing.get_type_hints(kind)
    names = {}
    for f in dataclasses.fields(kind):
        if "old" in f.metadata:
            names[f"{prefix}{f.metadata['old']}"] = f"{prefix}{f.name}"
        for section in (hints[f.name], *typing.get_args(hints[f.name])):
            if dataclasses.is_dataclass(section):
                names |= old_names(section, f"{prefix}{f.name}.")
    return names


def to_dict(config: Any) -> Any:
    """Convert a config to plain JSON values, keys in the order of its fields."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    return [to_dict(item) for item in config] if isinstance(config, (list, tuple)) else config


def from_dict(
    kind: type[Config],
    data: Any,
    where: str = "config",
    error: Callable[..., LightwamError] = ConfigError,
    *,
    partial: bool = False,
    defaults: bool = False,
) -> Config:
    """Convert JSON values to a config of the dataclass `kind`.

    Fields may be bool, int, float (an int will do), str, Literal, tuple, Mapping[str, ...], another dataclass, a union
    of dataclasses that differ in their field `kind`, any of these or None, Any, or Annotated[one of these, a condition
    on the value, the condition in words]. `where` begins the location in an `error`, which is raised for an unknown or
    missing key, a value of another type, a condition that does not hold, and a dataclass's ValueError. With `partial`,
    unknown keys are skipped; with `defaults`, a missing key has its field's default.
    """
    return typing.cast(Config, _Reader(error, partial, defaults).value(kind, data, where))


@dataclasses.dataclass(frozen=True)
class _Reader:
    error: Callable[..., LightwamError]
    partial: bool
    defaults: bool

    def value(self, kind: Any, data: Any, where: str) -> Any:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            return self.section(kind, data, where)
        if kind is Any or (origin is Literal and data in arguments):
            return data
        if origin is Annotated:
            inner, holds, words = arguments
            value = self.value(inner, data, where)
            if not holds(value):
                raise self.error(f"a value must be {words}", where=where, got=repr(data))
            return value
        if origin is tuple and isinstance(data, (list, tuple)):
            items = (arguments[0],) * len(data) if arguments[-1] is Ellipsis else arguments
            if len(items) == len(data):
                pairs = zip(items, data, strict=True)
                return tuple(self.value(item, value, f"{where}[{i}]") for i, (item, value) in enumerate(pairs))
        if origin is Mapping and isinstance(data, dict) and all(isinstance(key, str) for key in data):
            return {key: self.value(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
        if origin in (typing.Union, types.UnionType):
            if data is None and types.NoneType in arguments:
                return None
            options = [option for option in arguments if option is not types.NoneType]
            return self.value(options[0] if len(options) == 1 else self.option(options, data, where), data, where)
        if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
            return float(data)
        if origin is None and isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
            return data
        expected = kind.__name__ if isinstance(kind, type) else kind
        raise self.error("a value has the wrong type", where=where, got=repr(data), expected=expected)

    def option(self, options: list[Any], data: Any, where: str) -> Any:
        """Return the dataclass of a union that `data` names by its `kind`."""
        kinds = {str(option.__dataclass_fields__["kind"].default): option for option in options}
        if not isinstance(data, dict) or "kind" not in data:
            got = sorted(data) if isinstance(data, dict) else repr(data)
            raise self.error("keys are missing", where=where, got=got, expected=["kind"])
        if data["kind"] not in list(kinds):
            raise self.error("unknown kind", where=f"{where}.kind", got=repr(data["kind"]), expected=sorted(kinds))
        return kinds[data["kind"]]

    def section(self, kind: Any, data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise self.error("a section must be a table", where=where, got=repr(data), expected=kind.__name__)
        hints, fields = typing.get_type_hints(kind, include_extras=True), dataclasses.fields(kind)
        keys, values = {f.name: f.metadata.get("key", f.name) for f in fields}, dict(data)
        for f in fields:
            old = f.metadata.get("old")
            if old in values and f.name not in values:
                warnings.warn(f"{where}: {old!r} is now {f.name!r}", FutureWarning, stacklevel=2)
                values[f.name] = values.pop(old)
        unknown = [key for key in values if key not in keys.values()]
        if unknown and not self.partial:
            step = did_you_mean(str(unknown[0]), keys.values())
            raise self.error("unknown key", where=where, got=repr(unknown[0]), next_step=step)
        known = {f: f.default for f in fields if f.metadata.get("added") or self.defaults}
        values = {
            keys[f.name]: to_dict(value) for f, value in known.items() if value is not dataclasses.MISSING
        } | values
        if missing := [key for key in keys.values() if key not in values]:
            raise self.error("keys are missing", where=where, got=sorted(values), expected=missing)
        parts = {name: self.value(hints[name], values[key], f"{where}.{key}") for name, key in keys.items()}
        try:
            return kind(**parts)
        except ValueError as error:
            raise self.error(str(error), where=where) from error
