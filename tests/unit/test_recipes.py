"""Every name in recipes.py gives a recipe that fits together, and the paper's sizes are the paper's."""

import pytest

from lightwam.config import paper_recipes, recipes
from lightwam.config.checks import check_recipe
from lightwam.config.recipe_files import recipe
from lightwam.config.robotwin_tasks import STEP_LIMITS
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
    assert paper_recipes.paper_libero_model().supervised_prefix == 10


def test_robotwin_has_its_fifty_tasks_and_the_published_settings() -> None:
    recipe = paper_recipes.robotwin()
    assert len(recipe.simulation.tasks) == 50 and {"stack_blocks_two", "turn_switch"} <= set(recipe.simulation.tasks)
    assert STEP_LIMITS["stack_blocks_two"] == 800 and recipe.simulation.max_steps == STEP_LIMITS["put_bottles_dustbin"]
    model, codec, train = recipe.model, recipe.codec, recipe.train
    assert (model.state_dim, model.action_dim, model.horizon, model.supervised_prefix) == (14, 14, 32, 24)
    assert (codec.canvas, codec.video_stride, codec.state_norm, codec.action_norm) == (
        (384, 320),
        4,
        "z_score",
        "z_score",
    )
    assert [(p.top, p.left, p.height, p.width) for p in codec.places] == [
        (0, 0, 256, 320), (256, 0, 128, 160), (256, 160, 128, 160)
    ]  # fmt: skip
    assert (codec.delta_action_dims, codec.relative_action_dims, model.action_loss_weight) == ((), (), 1)
    assert (train.steps, train.batch_size, train.learning_rate, train.warmup_steps) == (460_000, 128, 1e-4, 1000)
    assert (train.betas, train.weight_decay, train.clip_norm, train.precision) == ((0.9, 0.95), 0.01, 1, "bfloat16")
    assert (recipe.eval.trials, recipe.eval.replan) == (100, 24)
