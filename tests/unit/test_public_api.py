"""lightwam/__init__.py: the names that users import. mypy checks this file too: `assert_type` fails there."""

import ast
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, assert_type

import pytest

import lightwam as lw
from lightwam.config.schema import Recipe
from lightwam.types import Observation

PUBLIC = [name for name in lw.__all__ if name != "__version__"]
EARLIER_MODULES = ("collect", "compare", "evaluate", "train")
"""functions whose name was a module's path in earlier versions"""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    module = lw._MODULES[name]
    assert getattr(lw, name) is getattr(importlib.import_module(module), name)
    assert getattr(lw, name).__module__ == module, "named by the module that defines it"


def test_dir_lists_every_public_name() -> None:
    assert set(PUBLIC) <= set(dir(lw))


def test_every_error_is_public() -> None:
    from lightwam import errors

    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in defined if issubclass(vars(errors)[name], errors.LightwamError)} <= set(PUBLIC)


def test_type_checkers_see_the_same_names() -> None:
    """The static imports and the table of the lazy ones agree."""
    tree = ast.parse(Path(lw.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == lw._MODULES
    assert all(alias.name == alias.asname for node in imports for alias in node.names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "no_such_name"
    with pytest.raises(AttributeError, match="module 'lightwam' has no attribute 'no_such_name'"):
        getattr(lw, name)
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from lightwam import no_such_name")


def test_types_are_known_statically() -> None:
    """`lw.recipe` would be Any for mypy without the static imports, and this file would not pass it."""
    assert_type(lw.recipe("point"), Recipe)
    assert_type(lw.recipe_names(), tuple[str, ...])
    assert_type(lw.StepOutcome(success=True).success, bool)

    def statically(policy: lw.Policy, observation: lw.Observation) -> None:  # pyright and mypy read it, nothing runs it
        assert_type(observation, Observation)
        assert_type(policy.begin(), lw.Episode)
        assert_type(lw.evaluate("runs/demo", policy=policy), dict[str, Any])

    assert callable(statically)


def test_recipes_by_name() -> None:
    assert lw.recipe_names()[:3] == ("demo", "mt10", "point")
    assert [lw.recipe(name).name for name in lw.recipe_names()] == list(lw.recipe_names())


@pytest.mark.parametrize("name", EARLIER_MODULES)
def test_a_module_of_an_earlier_version_leaves_the_function_callable(name: str) -> None:
    """`from lightwam.train import train` binds the module `train` in the package, where `lw.train` is looked up."""
    code = f"""if True:
        import warnings, inspect
        import lightwam as lw
        warnings.simplefilter("ignore", FutureWarning)
        function = lw.{name}
        from lightwam.{name} import {name}
        assert {name} is function
        try:
            lw.{name}()
        except TypeError as error:
            assert "{name}() missing" in str(error), error
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_jobs_in_order_with_directories_as_text(tiny_recipe: lw.Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe, collect=replace(tiny_recipe.demonstrations, demos_per_task=1))
    dataset, run = str(tmp_path / "dataset"), str(tmp_path / "run")
    assert lw.collect(recipe, dataset=dataset).episodes == 2
    assert lw.train(recipe, dataset=dataset, run=run) == Path(run)
    result = lw.evaluate(run)
    assert result["trials"] == 4
    assert lw.compare(f"{run}/eval", f"{run}/eval")["pairs"]["wins"] == 0
    assert lw.write_report(run) == Path(run) / "report.html"
    assert lw.Policy.load(run, device="auto").recipe == recipe
