"""config/schema.py: reading is strict both ways, and `check_recipe` refuses what does not fit together, by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any

import pytest

from lightwam.config import recipes
from lightwam.config.checks import check_recipe
from lightwam.config.schema import CameraPlace, Recipe, SourceConfig
from lightwam.config.strict_json import from_dict, old_names, stored_as, to_dict
from lightwam.errors import ConfigError, DatasetError


def changed(recipe: Any, path: str, value: Any) -> Any:
    """The same frozen config with one value, named by its dotted path, changed."""
    name, _, rest = path.partition(".")
    return replace(recipe, **{name: changed(getattr(recipe, name), rest, value) if rest else value})


@pytest.fixture
def recipe() -> Recipe:
    return recipes.point()


def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_notes_survive_json_too(recipe: Recipe) -> None:
    assert from_dict(Recipe, to_dict(replace(recipe, notes="why"))).notes == "why"


def test_a_setting_that_came_later_is_read_as_what_older_recipes_meant(recipe: Recipe) -> None:
    data = to_dict(recipe)
    del data["sim"]["protocol"], data["collect"]["demos_per_turn"]
    assert from_dict(Recipe, data) == recipe


def test_old_names_are_read_with_one_line_of_warning_each(recipe: Recipe) -> None:
    data = to_dict(recipe)
    data["collect"]["turn"] = data["collect"].pop("demos_per_turn")
    data["train"]["listeners"] = data["train"].pop("loggers")
    with pytest.warns(FutureWarning) as caught:
        assert from_dict(Recipe, data) == recipe
    assert [str(warning.message) for warning in caught] == [
        "config.collect: 'turn' is now 'demos_per_turn'",
        "config.train: 'listeners' is now 'loggers'",
    ]


def test_a_key_under_both_names_is_refused(recipe: Recipe) -> None:
    data = to_dict(recipe)
    data["collect"]["turn"] = 3
    with pytest.raises(ConfigError, match=r"(?s)unknown key.*config\.collect.*'turn'"):
        from_dict(Recipe, data)


def test_only_a_field_that_was_added_may_lack_both_names(recipe: Recipe) -> None:
    data = to_dict(recipe)
    del data["train"]["loggers"]
    with pytest.raises(ConfigError, match=r"(?s)keys are missing.*expected: \['loggers'\]"):
        from_dict(Recipe, data)


def test_old_names_have_their_section() -> None:
    names = old_names(Recipe)
    assert names == {"collect.turn": "collect.demos_per_turn", "train.listeners": "train.loggers"}


@dataclass(frozen=True)
class Part:
    sizes: Mapping[str, tuple[int, ...]]
    unit: str | None
    part: "Part | None"
    extra: Any


def test_the_reader_accepts_tables_none_and_any_value() -> None:
    data = {"sizes": {"a": [1, 2], "b": []}, "unit": None, "part": None, "extra": {"c": [None]}}
    read = from_dict(Part, data | {"part": data | {"unit": "m"}})
    sizes, extra = {"a": (1, 2), "b": ()}, {"c": [None]}
    assert read == Part(sizes, None, Part(sizes, "m", None, extra), extra)
    assert to_dict(read) == data | {"part": data | {"unit": "m"}}


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("sizes", [1], "sizes"),
        ("sizes", {"a": 1}, "sizes.a"),
        ("unit", 3, "unit"),
        ("part", {"unit": "m"}, "part"),
    ],
)
def test_the_reader_raises_the_error_of_its_caller(key: str, value: object, where: str) -> None:
    data = {"sizes": {}, "unit": "m", "part": None, "extra": 0} | {key: value}
    with pytest.raises(DatasetError, match=rf"file\.{where}"):
        from_dict(Part, data, "file", DatasetError)


@dataclass(frozen=True)
class Trials:
    count: Annotated[int, lambda count: count > 0, "at least 1"]
    first: int = stored_as("start")

    def __post_init__(self) -> None:
        if self.first > 9:
            raise ValueError("start must be at most 9")


def test_a_partial_reader_skips_unknown_keys_and_uses_stored_names() -> None:
    data = {"count": 2, "start": 3, "more": 4}
    assert from_dict(Trials, data, partial=True) == Trials(2, 3)
    with pytest.raises(ConfigError, match=r"(?s)unknown key.*'more'"):
        from_dict(Trials, data)
    with pytest.raises(ConfigError, match=r"(?s)keys are missing.*expected: \['start'\]"):
        from_dict(Trials, {"count": 2, "first": 3}, partial=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"count": 0}, r"at least 1\n  where: file\.count"),
        ({"start": "x"}, r"file\.start"),
        ({"start": 10}, r"start must be at most 9\n  where: file"),
    ],
)
def test_a_value_that_breaks_a_condition_is_refused_with_its_path(change: dict[str, object], text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        from_dict(Trials, {"count": 1, "start": 0} | change, "file", DatasetError)


def test_an_unknown_key_is_refused_with_its_path_and_a_suggestion(recipe: Recipe) -> None:
    data = to_dict(recipe)
    data["train"]["step"] = 3
    with pytest.raises(ConfigError, match=r"(?s)unknown key.*config\.train.*'step'.*did you mean 'steps'"):
        from_dict(Recipe, data)


def test_a_missing_key_is_refused_even_when_it_has_a_default(recipe: Recipe) -> None:
    data = to_dict(recipe)
    del data["train"]["seed"]
    with pytest.raises(ConfigError, match=r"(?s)keys are missing.*config\.train.*expected: \['seed'\]"):
        from_dict(Recipe, data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.steps", "many"),
        ("train.steps", True),
        ("train.steps", 1.5),
        ("train.steps", None),
        ("train.learning_rate", "1e-4"),
        ("train.precision", "float16"),
        ("model.backbone.frozen", 1),
        ("model.backbone.taps", 3),
        ("model.backbone.taps", [0, "1"]),
        ("model.backbone.patch", [1, 2]),
        ("latents.kind", "wan"),
        ("codec.places", [{"camera": "top"}]),
        ("sim", [1]),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_path(recipe: Recipe, path: str, value: object) -> None:
    data = to_dict(recipe)
    *way, last = path.split(".")
    inner = data
    for name in way:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        from_dict(Recipe, data)


def test_an_integer_may_stand_for_a_float(recipe: Recipe) -> None:
    data = to_dict(recipe)
    data["train"]["clip_norm"] = 2
    read = from_dict(Recipe, data).train.clip_norm
    assert read == 2.0
    assert isinstance(read, float)


BAD = [
    ("train.steps", 0, "train.steps"),
    ("train.batch_size", 0, "train.batch_size"),
    ("train.learning_rate", 0.0, "train.learning_rate"),
    ("train.learning_rate", float("nan"), "train.learning_rate"),
    ("train.clip_norm", 0.0, "train.clip_norm"),
    ("train.ema_decay", 1.0, "train.ema_decay"),
    ("train.betas", (0.9, 1.0), r"train.betas\[1\]"),
    ("train.warmup_steps", -1, "train.warmup_steps"),
    ("train.shift_pixels", -1, "train.shift_pixels"),
    ("train.video_share", 0.0, "train.video_share"),
    ("train.video_share", 1.5, "train.video_share"),
    ("train.video_share", float("nan"), "train.video_share"),
    ("text.num_tokens", 0, "text.num_tokens"),
    ("prompt", "do it", "prompt"),
    ("prompt", "{task} {colour}", "prompt"),
    ("prompt", "{task} {task}", "prompt"),
    ("sim.max_steps", 0, "sim.max_steps"),
    ("sim.tasks", (), "sim.tasks"),
    ("sim.tasks", ("red", "red"), "sim.tasks"),
    ("collect.demos_per_task", 0, "collect.demos_per_task"),
    ("collect.workers", 0, "collect.workers"),
    ("collect.demos_per_turn", 0, "collect.demos_per_turn"),
    ("collect.noise_std", -0.1, "collect.noise_std"),
    ("collect.noise_probability", 1.1, "collect.noise_probability"),
    ("collect.noise_steps", 0, "collect.noise_steps"),
    ("collect.extra_steps", -1, "collect.extra_steps"),
    ("eval.trials", 0, "eval.trials"),
    ("eval.replan", 0, "eval.replan"),
    ("eval.replan", 9, "eval.replan"),
    ("eval.first_seed", 50, "eval.first_seed"),
    ("eval.videos_per_task", -1, "eval.videos_per_task"),
    ("model.supervised_prefix", 9, "model.supervised_prefix"),
    ("model.supervised_prefix", 0, "model.supervised_prefix"),
    ("model.horizon", 12, "model.horizon"),
    ("model.state_dim", -1, "model.state_dim"),
    ("model.expert.state_frequencies", -1, r"model.expert.state_frequencies must be 0\.\.16"),
    ("model.foresight", -1, r"model.foresight must be 0\.\.1"),
    ("model.foresight", 2, r"model.foresight must be 0\.\.1"),
    ("model.video_loss_weight", -1.0, "model.video_loss_weight"),
    ("model.backbone.num_heads", 5, "model.backbone.num_heads"),
    ("model.backbone.num_heads", 3, "RoPE"),
    ("model.backbone.taps", (), "model.backbone.taps"),
    ("model.backbone.taps", (1, 0), "model.backbone.taps"),
    ("model.backbone.taps", (0, 2), "model.backbone.taps"),
    ("model.backbone.frozen", True, "nothing of the backbone"),
    ("model.backbone.text_dim", 33, "text.dim"),
    ("model.backbone.latent_channels", 9, "latents"),
    ("model.expert.num_pool_heads", 5, "model.expert.num_pool_heads"),
    ("codec.canvas", (48, 32), "codec.canvas height"),
    ("codec.canvas", (32, 48), "codec.canvas width"),
    ("codec.video_stride", 0, "model.horizon"),
    ("codec.places", (), "codec.places"),
    ("codec.places", (CameraPlace("side", 0, 0, 32, 32),), "codec.places"),
    ("codec.places", (CameraPlace("top", 0, 8, 32, 32),), "codec.places top"),
    ("codec.places", (CameraPlace("top", 0, 0, 0, 32),), "codec.places top"),
    ("codec.places", (CameraPlace("top", 0, 0, 32, 32, crop=(0.5, 0.0, 0.5, 1.0)),), "codec.places top crop"),
    ("collect.more_demos", (("rde", 3),), "collect.more_demos"),
    ("collect.more_demos", (("red", 99_999),), "eval.first_seed"),
    ("codec.delta_action_dims", (2,), "codec.delta_action_dims"),
    ("codec.relative_action_dims", (0,), "none of codec.delta_action_dims"),
    ("codec.relative_action_dims", (2,), "codec.relative_action_dims must be within 0..1"),
]


LIBERO = [
    ("sim.protocol", "open-pi", "sim.protocol"),
    ("sim.protocol", "openpi", "sim.height, sim.width"),
    ("sim.action_repeat", 2, "sim.action_repeat"),
    ("eval.trials", 51, "at most 50"),
    ("eval.replan", 8, "eval.replan"),
    ("collect.first_seed", 2_000_000, "benchmark's own states"),
    ("eval.first_seed", 1_000_010, "at most 40"),
]


@pytest.mark.parametrize(("path", "value", "says"), LIBERO, ids=[f"{path}={value}" for path, value, _ in LIBERO])
def test_settings_that_do_not_fit_libero_are_refused_by_name(path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_recipe(changed(recipes.libero_object(), path, value))


def test_libero_may_draw_any_number_of_states() -> None:
    check_recipe(changed(changed(recipes.libero_object(), "eval.first_seed", 900_000), "eval.trials", 60))


@pytest.mark.parametrize(("path", "value", "says"), BAD, ids=[f"{path}={value}" for path, value, _ in BAD])
def test_settings_that_contradict_are_refused_by_name(recipe: Recipe, path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_recipe(changed(recipe, path, value))


@pytest.mark.parametrize("others", [{"checkpointing": True}, {}], ids=["checkpointing", "videos alone"])
def test_a_share_of_the_videos_needs_what_it_can_skip(recipe: Recipe, others: dict[str, bool]) -> None:
    """With the share of 1 the same settings pass."""
    sources = () if others else (SourceConfig(path="mine"), SourceConfig(path="clips", actions="none"))
    whole = replace(recipe, sources=sources, train=replace(recipe.train, **others))
    check_recipe(whole)
    with pytest.raises(ConfigError, match=r"train\.video_share must be 1 with"):
        check_recipe(replace(whole, train=replace(whole.train, video_share=0.5)))


def test_a_recipe_that_fits_comes_back_as_it_was(recipe: Recipe) -> None:
    assert check_recipe(recipe) is recipe


def test_a_task_may_have_more_demonstrations(recipe: Recipe) -> None:
    collect = replace(recipe.collect, demos_per_task=5, more_demos=(("red", 3),))
    assert [collect.demos(task) for task in ("red", "blue")] == [8, 5]


def test_every_setting_is_frozen(recipe: Recipe) -> None:
    """A config that can be changed after `check_recipe` has not been checked."""
    sections = [recipe, *(getattr(recipe, field.name) for field in fields(recipe))]
    for section in filter(is_dataclass, sections):
        with pytest.raises(AttributeError):
            setattr(section, fields(section)[0].name, 1)
