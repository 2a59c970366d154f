"""system/moved.py: scripts written for earlier versions still import what the documents named."""

import importlib
import sys

import pytest

from lightwam.system import moved


@pytest.mark.parametrize("earlier", sorted(moved.MOVED))
def test_an_earlier_path_imports_with_a_warning(earlier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, earlier, raising=False)
    with pytest.warns(FutureWarning, match=f"{earlier} is now {moved.MOVED[earlier]}"):
        module = importlib.import_module(earlier)
    present = importlib.import_module(moved.MOVED[earlier])
    name = next(name for name in vars(present) if not name.startswith("_"))
    assert getattr(module, name) is getattr(present, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(module, "no_such_name")  # noqa: B009
    monkeypatch.delitem(sys.modules, earlier)
    package, _, last = earlier.rpartition(".")
    delattr(sys.modules[package], last)  # other tests look up the public function of that name


def test_packages_give_the_names_that_modules_of_their_path_gave() -> None:
    from lightwam.config import Recipe
    from lightwam.config.schema import Recipe as same_recipe
    from lightwam.data.cache import FrameCache
    from lightwam.data.cache.frames import FrameCache as same_cache
    from lightwam.policy import Policy
    from lightwam.policy.policy import Policy as same_policy

    assert (Recipe, FrameCache, Policy) == (same_recipe, same_cache, same_policy)


def test_other_modules_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lightwam.no_such_module")
