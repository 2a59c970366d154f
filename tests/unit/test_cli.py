"""cli/: what a command line turns into, and what the user reads when it is wrong.

The functions behind the commands are replaced by recorders, so nothing is trained or simulated; a recorder refuses
arguments that the function does not have.
"""

import importlib
import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightwam.cli import main as cli
from lightwam.cli import show
from lightwam.cli.main import main
from lightwam.cli.options import parse, print_progress
from lightwam.cli.serve import ServeOptions
from lightwam.config import recipes
from lightwam.config.commands import ControlSettings
from lightwam.config.schema import EvalConfig, Recipe, Umt5Config
from lightwam.errors import DatasetError
from lightwam.policy import run_directory
from lightwam.policy.policy import Policy
from lightwam.training.caches import DatasetSource

Calls = list[tuple[Any, ...]]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """record("lightwam.training.train", "train") puts a recorder in the function's place; returns its list of calls."""

    def put(module: str, function: str, answer: Any = None) -> Calls:
        calls: Calls = []
        real = importlib.import_module(module)
        signature = inspect.signature(getattr(real, function))

        def recorder(*arguments: Any, **named: Any) -> Any:
            signature.bind(*arguments, **named)
            calls.append((*arguments, named) if named else arguments)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr(real, function, recorder)
        return calls

    return put


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main([name, "--help"]) == 0
    except SystemExit as exit_:  # tyro's way
        assert exit_.code == 0
    assert f"lightwam {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[0] == "lightwam"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian", "demo"], "did you mean 'train'"),
        (["train", "dmeo"], "did you mean 'demo'"),
        (["show", "libero-1"], "did you mean 'libero-10'"),
        (["show", "base"], "lightwam init DATASET --size base"),
        (["train"], "needs a recipe"),
        (["eval"], "needs a run directory"),
        (["eval", "--eval.trials", "3"], "needs a run directory, before its options"),
        (["eval", "--engine", "runs/a"], "got: --engine runs/a"),
        (["check", "simm"], "did you mean 'sim'"),
        (["bench", "trian", "demo"], "did you mean 'train'"),
        (["train", "point", "--train.steps", "0"], "train.steps"),
        (["collect", "point", "--eval.replan", "9"], "eval.replan"),
    ],
)
def test_a_wrong_word_is_explained_without_a_traceback(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lightwam: ")
    assert says in err
    assert "Traceback" not in err


def test_an_unknown_option_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "point", "--train.step", "5"])
    assert exit_.value.code == 2
    assert "--train.steps" in capsys.readouterr().err


def test_former_names_of_options_are_accepted_with_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--families", "aloha", "yam", "--most_together=3", "--renames", "top", "families"]
    options = parse(ServeOptions, words, "serve RUN")
    assert (options.serving.robot_schemas, options.serving.max_batch) == (("aloha", "yam"), 3)
    assert options.serving.renames == {"top": "families"}
    assert capsys.readouterr().err.splitlines() == [
        "lightwam: --families is now --robot-schemas",
        "lightwam: --most_together is now --max-batch",
    ]


def test_the_former_name_of_the_dataset_is_accepted(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = record("lightwam.training.train", "train")
    assert main(["train", "point", "--data", "d"]) == 0
    assert calls[0][1] == DatasetSource(Path("d"))
    assert capsys.readouterr().err == "lightwam: --data is now --dataset\n"


def test_adopt_needs_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adopt", "robotwin", "--dataset", "d"]) == 2
    assert "next: --checkpoint FILE.pt" in capsys.readouterr().err


def test_train_passes_recipe_dataset_and_run(record: Callable[..., Calls]) -> None:
    calls = record("lightwam.training.train", "train")
    assert main(["train", "point", "--train.steps", "7", "--run", "runs/x", "--dataset", "d"]) == 0
    ((recipe, data, run, options),) = calls
    assert (recipe.train.steps, data, run) == (7, DatasetSource(Path("d")), Path("runs/x"))
    assert options == {"device": "auto", "parallel": "ddp", "start_from": None, "statistics": "kept"}
    assert recipe.model == recipes.point().model


def test_places_are_named_after_the_recipe(record: Callable[..., Calls]) -> None:
    calls = record("lightwam.training.train", "train")
    main(["train", "point"])
    assert calls[0][:3] == (recipes.point(), DatasetSource(Path("data/point")), Path("runs/point"))


def test_cache_export_and_adopt_pass_their_options(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    cached = record("lightwam.training.precompute", "make_cache")
    assert (
        main(
            [
                "cache",
                "libero-10",
                "--dataset",
                "d",
                "--weights",
                "w",
                "--device",
                "cpu",
                "--cache",
                "c",
                "--batch-size",
                "2",
            ]
        )
        == 0
    )
    recipe, data, options = cached[0]
    source = DatasetSource(Path("d"), cache=Path("c"))
    assert (recipe.weights, data, options) == ("w", source, {"batch_size": 2, "device": "cpu"})

    exported = record("lightwam.training.adopt", "export", Path("x.pt"))
    assert main(["export", "runs/x", "--to", "x.pt", "--step", "5", "--no-ema"]) == 0
    assert exported == [(Path("runs/x"), Path("x.pt"), 5, {"ema": False})]

    adopted = record("lightwam.training.adopt", "adopt", Path("runs/y"))
    assert main(["adopt", "robotwin", "--checkpoint", "y.pt", "--dataset", "d", "--run", "runs/y"]) == 0
    source = DatasetSource(Path("d"))
    assert adopted == [(recipes.robotwin(), Path("y.pt"), source, Path("runs/y"), {"device": "auto"})]
    assert capsys.readouterr().out == "x.pt\nruns/y\n"


def test_tuples_and_switches_can_be_overridden(record: Callable[..., Calls]) -> None:
    done = SimpleNamespace(dataset="data/point", episodes=4, frames=80, new_episodes=4)
    calls = record("lightwam.data.collect", "collect", done)
    words = [
        "collect",
        "point",
        "--sim.tasks",
        "green",
        "yellow",
        "--train.loggers",
        "tensorboard",
        "--prompt",
        "go: {task}",
    ]
    assert main(words) == 0
    ((recipe, dataset, options),) = calls
    assert recipe.sim.tasks == ("green", "yellow")
    assert recipe.train.loggers == ("tensorboard",)
    assert recipe.prompt == "go: {task}"
    assert dataset == Path("data/point") and options == {"pool_factory": None}


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("train", "training.train.train"),
        ("collect", "data.collect.collect"),
        ("cache", "training.precompute.make_cache"),
        ("demo", "cli.pipeline.demo"),
        ("check expert", "evaluation.expert_check.check_experts"),
    ],
)
def test_sections_of_several_kinds_are_overridden_by_plain_names(
    command: str, function: str, record: Callable[..., Calls]
) -> None:
    module, _, name = function.rpartition(".")
    calls = record(f"lightwam.{module}", name, SimpleNamespace(dataset="x", episodes=0, frames=0, new_episodes=0))
    with suppress(TypeError):  # what comes back is not of interest
        main([*command.split(), "point", "--text.num-tokens", "24", "--train.steps", "9"])
    assert calls[0][0].text == replace(recipes.point().text, num_tokens=24)
    assert calls[0][0].train.steps == 9


def test_the_help_shows_options_of_the_recipes_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "libero-10", "--help"])
    out = capsys.readouterr().out
    assert "--text.num-tokens" in out and "--latents.channels" in out and "--latents.luma-channels" not in out


def test_another_kind_is_chosen_by_its_word_and_not_by_a_value(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = record("lightwam.training.train", "train")
    words = ["train", "point", "--weights", "w", "--train.steps", "7", "text:umt5-config", "--text.dim", "32"]
    assert main(words) == 0
    assert calls[0][0].text == Umt5Config(dim=32) and calls[0][0].train.steps == 7
    with pytest.raises(SystemExit):
        main(["train", "point", "--text.kind", "umt5"])
    assert "hashed" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "name"), [([], "demo"), (["point"], "point"), (["--run", "runs/demo"], "demo")])
def test_demo_needs_no_recipe(words: list[str], name: str, record: Callable[..., Calls]) -> None:
    calls = record("lightwam.cli.pipeline", "demo")
    assert main(["demo", *words]) == 0
    assert calls == [(recipes.RECIPES[name](), Path("runs") / name, {"cache": None})]


def test_eval_overrides_the_runs_own_settings_and_prints_rates(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    red = {"successes": 8, "trials": 9, "interval_95": (0.565, 0.98)}
    record("lightwam.policy.run_directory", "read_recipe", recipes.point())
    calls = record("lightwam.evaluation.evaluate", "evaluate", {**red, "tasks": {"red": red}})
    monkeypatch.setattr(Policy, "load", lambda *given, **named: (given, named))
    assert main(["eval", "runs/x", "--eval.trials", "9", "--folder", "again", "--step", "100", "--engine"]) == 0
    expected = EvalConfig(trials=9, replan=4, videos_per_task=1)
    loaded = ((Path("runs/x"), 100), {"device": "auto", "weights": None, "engine": True, "int8": False})
    assert calls == [
        (
            Path("runs/x"),
            expected,
            {"sim": recipes.point().sim, "policy": loaded, "folder": "again", "pool_factory": None},
        )
    ]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rest = ["8", "of", "9", "56%", "to", "98%"]
    assert lines == [["red", *rest], ["all", *rest]]


def test_eval_takes_another_suite_and_protocol(record: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch) -> None:
    red = {"successes": 8, "trials": 9, "interval_95": (0.565, 0.98)}
    record("lightwam.policy.run_directory", "read_recipe", recipes.libero_object())
    calls = record("lightwam.evaluation.evaluate", "evaluate", {**red, "tasks": {"red": red}})
    monkeypatch.setattr(Policy, "load", lambda *given, **named: None)
    assert main(["eval", "runs/x", "--suite", "libero_object_swap", "--protocol", "openpi"]) == 0
    settings, sim = calls[0][1], calls[0][2]["sim"]
    assert (sim.tasks[0], sim.tasks[-1], len(sim.tasks)) == ("libero_object_swap/0", "libero_object_swap/9", 10)
    assert (sim.protocol, sim.height, sim.width, settings.replan) == ("openpi", 224, 224, 5)
    assert sim.max_steps == 280
    assert main(["eval", "runs/x", "--suite", "libero_10"]) == 0
    assert calls.pop()[2]["sim"].max_steps == 700
    assert main(["eval", "runs/x", "--protocol", "lerobot"]) == 0  # which leaves the chunk to the policy
    assert calls[1][1].replan == recipes.libero_object().eval.replan


def test_options_given_with_a_suite_or_protocol_are_kept(
    record: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.libero_object_small()
    record("lightwam.policy.run_directory", "read_recipe", recipe)
    nothing = {"successes": 0, "trials": 1, "interval_95": (0, 1), "tasks": {}}
    calls = record("lightwam.evaluation.evaluate", "evaluate", nothing)
    monkeypatch.setattr(Policy, "load", lambda *given, **named: None)
    monkeypatch.setattr("lightwam.cli.eval.table", str)
    assert main(["eval", "runs/x", "--suite", "libero_10", "--sim.max_steps=100"]) == 0
    assert calls.pop()[2]["sim"].max_steps == 100
    assert main(["eval", "runs/x", "--suite", "libero_object"]) == 0
    assert calls.pop()[2]["sim"].max_steps == recipe.sim.max_steps, "the run's own suite"


def test_protocol_is_short_for_the_setting_of_the_simulator(
    record: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    record("lightwam.policy.run_directory", "read_recipe", recipes.libero_object())
    calls = record(
        "lightwam.evaluation.evaluate", "evaluate", {"successes": 0, "trials": 1, "interval_95": (0, 1), "tasks": {}}
    )
    monkeypatch.setattr(Policy, "load", lambda *given, **named: None)
    for option in ("--protocol", "--sim.protocol"):
        assert main(["eval", "runs/x", option, "openpi"]) == 0
    assert calls[0] == calls[1]
    assert (calls[1][2]["sim"].protocol, calls[1][2]["sim"].height, calls[1][1].replan) == ("openpi", 224, 5)


@pytest.mark.parametrize(
    ("recipe", "words", "says"),
    [
        (recipes.libero_object, ["--suite", "libero_objekt"], "did you mean 'libero_object'"),
        (recipes.libero_object, ["--protocol", "openvla"], "did you mean 'openvla-oft'"),
        (recipes.point, ["--suite", "libero_object"], "choose tasks by --sim.tasks"),
        (
            recipes.libero_object,
            ["--protocol", "openpi", "--eval.replan", "7"],
            "eval.replan must be 5",
        ),
        (recipes.libero_object, ["--eval.replan", "7"], "eval.replan must be 10: sim.protocol light-wam"),
        (
            recipes.libero_object_small,
            ["--protocol", "light-wam", "--eval.replan", "8"],
            "eval.replan must be 10: sim.protocol light-wam",
        ),
        (recipes.libero_object, ["--protocol", "openpi", "--sim.height", "128"], "has pictures of this size"),
        (recipes.libero_object, ["--suite", "libero_10", "--sim.tasks", "libero_10/0"], "leave one of them out"),
        (recipes.libero_object, ["--protocol", "openpi", "--sim.protocol", "lerobot"], "leave one of them out"),
    ],
)
def test_eval_refuses_unknown_suites_and_protocols(
    recipe: Callable[[], Recipe], words: list[str], says: str, record: Callable[..., Calls],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    record("lightwam.policy.run_directory", "read_recipe", recipe())
    record("lightwam.evaluation.evaluate", "evaluate")
    assert main(["eval", "runs/x", *words]) == 2
    assert says in capsys.readouterr().err


def test_eval_runs_simulators_on_a_ray_cluster(record: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch) -> None:
    from lightwam.system.ray_workers import RayWorkers

    red = {"successes": 8, "trials": 9, "interval_95": (0.565, 0.98)}
    record("lightwam.policy.run_directory", "read_recipe", recipes.point())
    calls = record("lightwam.evaluation.evaluate", "evaluate", {**red, "tasks": {"red": red}})
    monkeypatch.setattr(Policy, "load", lambda *given, **named: None)
    for words, address in (([], "auto"), (["--ray-address", "there:6379"], "there:6379")):
        assert main(["eval", "runs/x", "--ray", *words]) == 0
        pool_factory = calls.pop()[-1]["pool_factory"]
        assert (pool_factory.func, pool_factory.keywords) == (RayWorkers, {"address": address, "say": print})


def test_eval_refuses_to_execute_what_was_never_supervised(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    record("lightwam.policy.run_directory", "read_recipe", recipes.point())
    calls = record("lightwam.evaluation.evaluate", "evaluate")
    assert main(["eval", "runs/x", "--eval.replan", "9"]) == 2
    assert "never supervised" in capsys.readouterr().err
    assert calls == []


def test_report_says_where_it_is(record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]) -> None:
    calls = record("lightwam.report", "write_report", Path("runs/x/report.html"))
    assert main(["report", "runs/x"]) == 0
    assert calls == [("runs/x",)]
    assert capsys.readouterr().out == "runs/x/report.html\n"


def test_check_sim_checks_every_task_or_the_one_named(record: Callable[..., Calls]) -> None:
    calls = record("lightwam.sim.check", "check_simulator", [])
    assert main(["check", "sim", "point"]) == 0
    assert [task for _, task in calls] == ["red", "blue"]
    calls.clear()
    assert main(["check", "sim", "point", "--task", "green"]) == 0
    assert calls == [(recipes.point().sim, "green")]


def test_check_sim_fails_with_every_broken_promise(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    record("lightwam.sim.check", "check_simulator", ["step takes NaN", "reset ignores its seed"])
    assert main(["check", "sim", "point", "--task", "red"]) == 2
    out, err = capsys.readouterr()
    assert "step takes NaN" in out
    assert "reset ignores its seed" in out
    assert "got: 2 broken promises" in err


def test_check_dataset_reads_everything(record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]) -> None:
    dataset = SimpleNamespace(cameras={"top": (32, 32)}, num_frames=12, num_episodes=3, tasks=["a"])
    found = SimpleNamespace(problems=(), notes=("rows lie unevenly",), dataset=dataset)
    calls = record("lightwam.data.lerobot.check", "check_dataset", found)
    assert main(["check", "dataset", "data/x", "--names", "image=top"]) == 0
    (path, names, tell), *_ = calls
    assert path == Path("data/x") and names.pairs() == ("image=top",)
    tell(12, 12)
    out = capsys.readouterr().out
    assert "note: rows lie unevenly" in out and "data/x: sound; 3 episodes, 12 frames" in out


def test_bench_train_measures_the_recipe(record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]) -> None:
    calls = record("lightwam.training.benchmark", "bench_train", {"plain_s": 2.0})
    assert main(["bench", "train", "point", "--train.batch-size", "4", "--json"]) == 0
    assert calls[0][0].train.batch_size == 4
    assert calls[0][1] == {"device": "auto", "say": print_progress}
    assert json.loads(capsys.readouterr().out) == {"plain_s": 2.0}


def test_bench_act_measures_a_run_or_a_recipe(record: Callable[..., Calls], tmp_path: Path) -> None:
    calls = record("lightwam.policy.benchmark", "bench_act", {})
    (tmp_path / "recipe.json").touch()
    assert main(["bench", "act", str(tmp_path), "--json", "--int8"]) == 0
    assert main(["bench", "act", "point", "--json", "--precision", "bfloat16", "--device", "cpu"]) == 0
    assert calls == [
        (tmp_path, {"device": "auto", "precision": None, "int8": True, "say": print_progress}),
        (recipes.point(), {"device": "cpu", "precision": "bfloat16", "int8": False, "say": print_progress}),
    ]


def test_bench_eval_serve_and_control_print_their_tables(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated, served, rehearsed = (
        record(f"lightwam.{module}", function, {})
        for module, function in (
            ("evaluation.benchmark", "bench_eval"),
            ("serving.benchmark", "bench_serve"),
            ("evaluation.latency_benchmark", "bench_control"),
        )
    )
    for module in ("evaluation.benchmark", "serving.benchmark", "evaluation.latency_benchmark"):
        record(f"lightwam.{module}", "table", f"the table of {module}")
    assert main(["bench", "eval", "point", "--eval.trials", "3"]) == 0
    assert main(["bench", "serve"]) == 0
    assert main(["bench", "control", "runs/x", "--trials", "2", "--latencies-ms", "50", "--blend", "0"]) == 0
    assert (evaluated[0][0].eval.trials, served) == (3, [()])
    assert rehearsed == [("runs/x", ControlSettings(trials=2, latencies_ms=(50.0,), blend=0), print_progress)]
    assert capsys.readouterr().out.count("the table of") == 3


def test_a_users_error_is_printed_with_exit_code_2(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record("lightwam.training.train", "train", DatasetError("no data", where="data/point"))
    assert main(["train", "point"]) == 2
    assert capsys.readouterr().err == "lightwam: no data\n  where: data/point\n"
    monkeypatch.setenv("LIGHTWAM_DEBUG", "1")
    with pytest.raises(DatasetError):
        main(["train", "point"])


def test_a_bug_keeps_its_traceback(record: Callable[..., Calls]) -> None:
    record("lightwam.training.train", "train", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["train", "point"])


def test_ctrl_c_says_in_one_line_how_to_go_on(record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]) -> None:
    record("lightwam.training.train", "train", KeyboardInterrupt())
    assert main(["train", "point", "--run", "runs/a b"]) == 130
    assert capsys.readouterr().err.strip() == "lightwam: stopped. To resume: lightwam train point --run 'runs/a b'"


def test_show_counts_the_papers_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "libero-10", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)["parameters"]
    assert round(parts["all"]["trainable"] / 1e6, 2) == 441.03
    assert round(parts["lora"]["total"] / 1e6, 2) == 87.49
    dit = sum(parts[name]["total"] for name in ("blocks", "lora", "adapters", "head", "embeddings"))
    assert round(dit / 1e6, 2) == 1508.86


def test_show_reads_overrides_and_fits_memory_to_them(capsys: pytest.CaptureFixture[str]) -> None:
    memory = []
    for decay in ("0.0", "0.9"):
        assert main(["show", "point", "--json", "--train.ema-decay", decay]) == 0
        memory.append(json.loads(capsys.readouterr().out)["memory_bytes"])
    assert memory[0]["ema"] == 0
    assert memory[1]["ema"] == memory[1]["weights"] == memory[1]["gradients"] == memory[1]["optimiser"] // 2
    assert memory[1]["all"] - memory[0]["all"] == memory[1]["ema"]
    assert memory[0]["masters"] == 0


def test_the_24_gb_recipe_fits_with_memory_to_spare(capsys: pytest.CaptureFixture[str]) -> None:
    held = {}
    for name, options in (("libero-10", ()), ("libero-10-24gb", ()), ("libero-10-24gb", ("--train.checkpointing",))):
        assert main(["show", name, "--json", *options]) == 0
        held[name, *options] = json.loads(capsys.readouterr().out)["memory_bytes"]
    paper, small, smaller = held.values()
    assert paper["all"] < 30 * 2**30, "16 samples at once"
    assert small["all"] < 18 * 2**30, "the sum leaves 6 GiB for what it does not count"
    assert small["masters"] == small["optimiser"] / 2
    assert small["gradients"] == 1.5 * small["masters"], "in bfloat16, and their sum over micro batches in float32"
    assert smaller["activations"] < small["activations"] / 7


def test_show_for_the_eye(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "point"]) == 0
    out = capsys.readouterr().out
    assert "8 actions, 8 supervised, 5 frames of 32x32 pixels" in out
    assert "KiB" in out
    assert "time of 2,000 steps of 64\n  here" in out


def test_show_calculates_the_hours_of_large_models(capsys: pytest.CaptureFixture[str]) -> None:
    """As facts of the packed step say: 16 samples of libero-10 are 58 TFLOP, 0.75 s on an RTX 4090."""
    assert main(["show", "libero-10", "--json", "--train.batch-size", "16", "--train.steps", "4800"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    assert training["tflop_per_step"] == pytest.approx(57.9, rel=0.1)
    assert "here" not in training["hours"]
    assert training["hours"]["RTX 4090"] == pytest.approx(1.0, rel=0.15)
    assert training["hours"]["H100"] == pytest.approx(0.27, rel=0.15)


def test_the_old_name_of_a_setting_is_accepted_with_a_line_on_stderr(
    record: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    done = SimpleNamespace(dataset="d", episodes=4, frames=8, new_episodes=4)
    calls = record("lightwam.data.collect", "collect", done)
    assert main(["collect", "point", "--collect.turn=7"]) == 0
    assert capsys.readouterr().err == "lightwam: --collect.turn is now --collect.demos-per-turn\n"
    recipe = calls[0][0]
    assert recipe.collect.demos_per_turn == 7
    assert main(["collect", "point", "--train.listeners", "wandb", "trackio"]) == 0
    assert calls[1][0].train.loggers == ("wandb", "trackio")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 30, "3.0 GiB")])
def test_sizes_in_words(count: int, text: str) -> None:
    assert show.size(count) == text


def test_machine_errors_have_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(arguments: list[str]) -> None:
        raise PermissionError(13, "Permission denied", "runs/x/ema.safetensors")

    monkeypatch.setattr(show, "run", refuse)
    assert main(["show"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lightwam: a file cannot be used\n  where: runs/x/ema.safetensors\n  got: Permission denied")

    def break_(arguments: list[str]) -> None:
        raise FileNotFoundError(2, "No such file", "x")  # a bug of ours: its traceback is wanted

    monkeypatch.setattr(show, "run", break_)
    with pytest.raises(FileNotFoundError):
        main(["show"])


def test_text_of_the_command_line_is_utf_8_where_the_locale_is_not(tmp_path: Path) -> None:
    there = tmp_path / "gr\udcc3\udcbcn"
    recipe = replace(recipes.point(), notes="", weights=str(there))
    options = parse(Recipe, ["--notes", "gr\udcc3\udcbcn", "--prompt", "\udcff{task}"], "show", recipe)
    assert (options.notes, options.prompt) == ("gr\u00fcn", "\\xff{task}")
    there.mkdir()
    assert parse(Recipe, ["--weights", str(there), "--notes", "\udcff"], "show", recipe).weights == str(there)


def test_a_run_is_evaluated_in_the_simulator_of_a_recipe_with_its_own_replan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = replace(recipes.point(), sim=None, collect=None, eval=replace(recipes.point().eval, replan=2))
    run_directory.start_run(tmp_path, own)
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("lightwam.cli.eval.print_step", lambda *given: None)
    monkeypatch.setattr("lightwam.policy.policy.Policy.load", lambda *given, **named: None)
    monkeypatch.setattr(
        "lightwam.evaluation.evaluate.evaluate",
        lambda run, settings, sim, **named: (
            calls.append((settings, sim)) or {"tasks": {}, "successes": 0, "trials": 1, "interval_95": [0, 1]}
        ),
    )
    assert main(["eval", str(tmp_path), "point", "--eval.trials", "3"]) == 0
    settings, sim = calls.pop()
    assert (settings.trials, settings.replan, sim) == (3, 2, recipes.point().sim)
