"""config/robotwin_protocols.py: names and words of protocols, and what they fix of a recipe."""

from dataclasses import replace

import pytest

from lightwam.config import recipes
from lightwam.config.checks import check_recipe
from lightwam.config.robotwin_protocols import robotwin_protocol, with_robotwin_protocol
from lightwam.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "scene", "sentences", "pictures", "replan"),
    [
        ("", "demo_clean", "template", "rasterised", None),
        ("plain", "demo_clean", "template", "rasterised", None),
        ("plain/randomized/seen", "demo_randomized", "seen", "rasterised", None),
        ("plain/no-shadows", "demo_clean", "template", "no-shadows", None),
        ("plain/ray-traced", "demo_clean", "template", "ray-traced", None),
        ("robotwin-2026-06", "demo_clean", "unseen", "ray-traced", 24),
        ("robotwin-2026-06/randomized", "demo_randomized", "unseen", "ray-traced", 24),
        ("robotwin-2026-08", "demo_clean", "seen", "ray-traced", None),
        ("robotwin-2026-08/randomized", "demo_randomized", "unseen", "ray-traced", None),
        ("robotwin-2026-08/seen/randomized/rasterised", "demo_randomized", "seen", "rasterised", None),
    ],
)
def test_a_name_is_a_base_and_words(name: str, scene: str, sentences: str, pictures: str, replan: int | None) -> None:
    found = robotwin_protocol(name)
    assert (found.scene, found.sentences, found.pictures, found.replan) == (scene, sentences, pictures, replan)
    assert found.published == name.startswith("robotwin")


@pytest.mark.parametrize(("name", "words"), [("plane", "did you mean 'plain'"), ("plain/sean", "did you mean 'seen'")])
def test_unknown_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        robotwin_protocol(name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 120}, "pictures of this size"),
        ({"action_repeat": 4}, "every single action"),
        ({"protocol": "robotwin-2026"}, "unknown sim.protocol"),
    ],
)
def test_a_published_protocol_fixes_size_and_stride(changes: dict, words: str) -> None:
    recipe = recipes.robotwin()
    with pytest.raises(ConfigError, match=words):
        check_recipe(replace(recipe, sim=replace(recipe.simulation, **changes)))
    check_recipe(replace(recipe, sim=replace(recipe.simulation, protocol="plain", height=120, action_repeat=4)))


def test_another_replan_than_the_protocols_is_refused() -> None:
    recipe = recipes.robotwin()
    with pytest.raises(ConfigError, match=r"eval\.replan must be 24"):
        check_recipe(replace(recipe, eval=replace(recipe.eval, replan=8)))


def test_a_protocol_brings_its_size_limit_and_replan_unless_options_set_them() -> None:
    recipe = recipes.robotwin_blocks_small()
    sim, settings = with_robotwin_protocol(recipe.simulation, recipe.eval, "robotwin-2026-06", frozenset())
    assert (sim.height, sim.width, sim.max_steps, settings.replan) == (240, 320, 1200, 24)
    explicit = frozenset({"--sim.height", "--sim.max-steps", "--eval.replan"})
    sim, settings = with_robotwin_protocol(recipe.simulation, recipe.eval, "robotwin-2026-06", explicit)
    assert (sim.height, sim.max_steps, settings.replan) == (168, 240, 4)
