"""config/recipes.py: every name gives a recipe that fits together, and the paper's sizes are the paper's."""

import pytest

from lightwam.config import recipes
from lightwam.config.checks import check_recipe
from lightwam.config.recipe_files import recipe
from lightwam.errors import ConfigError


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_fits_together_and_bears_its_name(name: str) -> None:
    assert check_recipe(recipes.RECIPES[name]()).name == name
    assert recipe(name) == recipes.RECIPES[name]()


def test_an_unknown_recipe_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown recipe.*'dem'.*did you mean 'demo'"):
        recipe("dem")


def test_the_demo_has_four_metaworld_tasks() -> None:
    demo = recipes.demo()
    assert demo.sim.tasks == ("reach", "button-press-topdown", "drawer-open", "window-open")
    assert demo.eval.trials == 20
    assert demo.model.state_dim == 4


def test_the_papers_model_supervises_what_its_evaluation_executes() -> None:
    assert recipes.paper_libero_model().supervised_prefix == 10
