"""Properties of config.py: JSON there and back, and no key or type slips through."""

import json
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightwam.config import recipes
from lightwam.config.schema import (
    BackboneConfig,
    CodecConfig,
    CollectConfig,
    EvalConfig,
    ExpertConfig,
    HashedTextConfig,
    ModelConfig,
    PcaConfig,
    Recipe,
    SimConfig,
    TrainConfig,
    Umt5Config,
)
from lightwam.config.strict_json import from_dict, to_dict
from lightwam.errors import ConfigError

numbers = st.floats(allow_nan=False, allow_infinity=False)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """JSON of any value that a setting of type `kind` can have."""
    arguments = get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.fixed_dictionaries({field.name: values(hints[field.name]) for field in fields(kind)})
    if get_origin(kind) is Literal:
        return st.sampled_from(arguments)
    if get_origin(kind) is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values(arguments[0]), max_size=3)
        return st.tuples(*map(values, arguments)).map(list)
    return {int: st.integers(), float: numbers, str: st.text(max_size=8), bool: st.booleans()}[kind]


SECTIONS = (
    BackboneConfig,
    CodecConfig,
    PcaConfig,
    HashedTextConfig,
    Umt5Config,
    SimConfig,
    CollectConfig,
    TrainConfig,
    EvalConfig,
    ExpertConfig,
)


@pytest.mark.parametrize("kind", SECTIONS)
@given(draw=st.data())
@settings(max_examples=30)
def test_any_section_survives_json(kind: Any, draw: st.DataObject) -> None:
    data = draw.draw(values(kind))
    config = from_dict(kind, json.loads(json.dumps(data)))
    assert to_dict(config) == data
    assert from_dict(kind, to_dict(config)) == config


def paths(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every table in a config's JSON."""
    if not isinstance(data, (dict, list)):
        return []
    items = data.items() if isinstance(data, dict) else enumerate(data)
    inner = [found for key, value in items for found in paths(value, (*path, key))]
    return [path, *inner] if isinstance(data, dict) else inner


def at(data: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


TABLES = paths(to_dict(recipes.demo()))
ADDED = {
    field.name
    for kind in (*SECTIONS, ModelConfig, ExpertConfig, Recipe)
    for field in fields(kind)
    if field.metadata.get("added")
}


@given(st.sampled_from(TABLES), st.text(max_size=12))
def test_an_unknown_key_is_refused_at_any_depth(path: tuple[str | int, ...], key: str) -> None:
    data = to_dict(recipes.demo())
    table = at(data, path)
    assume(key not in table)
    table[key] = 0
    with pytest.raises(ConfigError, match="unknown key"):
        from_dict(Recipe, data)


@given(st.sampled_from(TABLES), st.data())
def test_a_missing_key_is_refused_wherever_it_stood(path: tuple[str | int, ...], draw: st.DataObject) -> None:
    data = to_dict(recipes.demo())
    table = at(data, path)
    key = draw.draw(st.sampled_from(sorted(table.keys() - ADDED)))
    del table[key]
    with pytest.raises(ConfigError, match="keys are missing"):
        from_dict(Recipe, data)


@given(st.sampled_from(TABLES), st.data())
def test_null_is_a_value_of_optional_sections_only(path: tuple[str | int, ...], draw: st.DataObject) -> None:
    data = to_dict(recipes.demo())
    table = at(data, path)
    optional = {"sim", "collect"} if not path else set()
    table[draw.draw(st.sampled_from(sorted(table.keys() - optional)))] = None
    with pytest.raises(ConfigError):
        from_dict(Recipe, data)


@given(numbers)
def test_floats_keep_their_bits(value: float) -> None:
    recipe = recipes.demo()
    recipe = replace(recipe, train=replace(recipe.train, weight_decay=value))
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))).train.weight_decay == value
