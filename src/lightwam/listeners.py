"""Optional listeners to the training log: TensorBoard, Weights & Biases, trackio. log.jsonl stays the truth.

A run that goes on is the same run for its listeners: what they call it is kept in listeners.json, and steps that they
heard before a kill are not told twice. A listener that fails while training loses its rows, not the training.
"""

from __future__ import annotations

import configparser
import importlib
import json
import netrc
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightwam.config import Recipe, to_dict
from lightwam.data.files import write_file
from lightwam.errors import ConfigError, LightwamError

Listener = Callable[[int, Mapping[str, float]], None]

FILE = "listeners.json"
"""in the run directory: listener -> what it calls the run, and the last step that it heard before the newest start"""
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
PROJECT = "lightwam"
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""under which netrc may hold its key; the second since wandb 0.31"""


def check(recipe: Recipe) -> None:
    """Raise ConfigError unless the listeners that `recipe.train.listeners` names are installed and may be used.

    Nothing goes over a network: of Weights & Biases it is asked whether a key can be found at all.
    """
    for name in recipe.train.listeners:
        _load(name)
        if name == "wandb" and not _wandb_is_local() and not _wandb_key():
            raise ConfigError(
                "W&B does not know who you are",
                where="train.listeners",
                got="no WANDB_API_KEY, and no log-in on this machine",
                expected="an API key of Weights & Biases",
                next_step="`wandb login`, or set WANDB_API_KEY; WANDB_MODE=offline needs neither",
            )


@contextmanager
def listen(
    recipe: Recipe,
    run: Path,
    leads: bool = True,
    *,
    begun: int = 0,
    heard: int = 0,
    say: Callable[[str], None] = print,
) -> Iterator[list[Listener]]:
    """The listeners that `recipe.train.listeners` names, closed at the end; ConfigError when one cannot start.

    Of processes that train together only the one that leads has any. Training goes on from step `begun`; before the
    newest start rows up to step `heard` were told, which is more where a process was killed. A listener that fails
    later is said to have failed, once, and is told nothing more.
    """
    with ExitStack() as stack:
        yield [_open(name, recipe, run, stack, begun, heard, say) for name in recipe.train.listeners if leads]


def _open(
    name: str, recipe: Recipe, run: Path, stack: ExitStack, begun: int, heard: int, say: Callable[[str], None]
) -> Listener:
    module = _load(name)
    try:
        if name == "tensorboard":
            stack.enter_context(_quiet_threads())
            tell, close = _tensorboard(module, run, begun)
        else:
            tell, close = _tracker(name, module, recipe, run, heard)
    except LightwamError:
        raise
    except Exception as error:  # each has errors of its own, which change with its version
        ways = {"wandb": "check key and network (`wandb login`), or set WANDB_MODE=offline",
                "trackio": "check its settings", "tensorboard": "check the right to write"}  # fmt: skip
        again = f"; delete {run / FILE} to begin a new run there" if (run / FILE).exists() else ""
        raise ConfigError(f"the listener {name} cannot start", where="train.listeners", got=_first_line(error),
                          next_step=f"{ways[name]}, or leave it out{again}") from error  # fmt: skip
    guarded = _Guarded(name, tell, say)
    stack.callback(guarded.attempt, close)
    return guarded


class _Guarded:
    """A listener whose failure is told once and stops it alone."""

    def __init__(self, name: str, tell: Listener, say: Callable[[str], None]) -> None:
        self.name, self.tell, self.say, self.failed = name, tell, say, False

    def __call__(self, step: int, row: Mapping[str, float]) -> None:
        self.attempt(lambda: self.tell(step, row), f" at step {step}")

    def attempt(self, call: Callable[[], Any], when: str = "") -> None:
        """Do what may fail, unless something failed before."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # network, disk, or a fault of the package: never the training's
            self.failed = True
            self.say(f"train: the listener {self.name} failed{when} and hears no more ({_first_line(error)}); "
                     "log.jsonl has every row")  # fmt: skip


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """TensorBoard's thread prints the error that stops it, which the next call raises again: once is enough."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard"):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _tensorboard(module: Any, run: Path, begun: int) -> tuple[Listener, Callable[[], Any]]:
    # what a killed process wrote after its last checkpoint is hidden: it comes again
    writer = module.SummaryWriter(str(run / "tensorboard"), purge_step=begun + 1 if begun else None)

    def tell(step: int, row: Mapping[str, float]) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, step)

    return tell, writer.close


def _tracker(name: str, module: Any, recipe: Recipe, run: Path, heard: int) -> tuple[Listener, Callable[[], Any]]:
    """Weights & Biases and trackio share one interface; the former knows a run by its id, the latter by its name."""
    known, shown = _known(run), f"{recipe.name}-{run.absolute().name}"
    if (before := known.get(name)) is None:
        # trackio takes two runs of one name for one, and there may be another directory of this name
        fresh = os.environ.get("WANDB_RUN_ID") if name == "wandb" else f"{shown}-{secrets.token_hex(2)}"
        before = {"run": fresh or secrets.token_hex(4), "step": 0}
    else:
        before = {"run": before["run"], "step": max(before["step"], heard)}
    write_file(run / FILE, json.dumps(known | {name: before}, indent=2) + "\n")  # first: a kill must not lose the id
    called = {"id": before["run"], "name": shown} if name == "wandb" else {"name": before["run"]}
    module.init(project=PROJECT, config=to_dict(recipe), resume="allow", **called)

    def tell(step: int, row: Mapping[str, float]) -> None:
        if step > before["step"]:
            module.log(dict(row), step=step)

    return tell, module.finish


def _known(run: Path) -> dict[str, Any]:
    path = run / FILE
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"run": str(one["run"]), "step": int(one["step"])} for name, one in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("a file of the run cannot be read", where=path, got=_first_line(error),
                          expected='{"wandb": {"run": "an id", "step": 0}}',
                          next_step="delete it: listeners begin a new run then") from error  # fmt: skip


def _wandb_is_local() -> bool:
    mode = os.environ.get("WANDB_MODE") or _wandb_setting("mode")
    disabled = os.environ.get("WANDB_DISABLED") or _wandb_setting("disabled")
    return mode in ("offline", "dryrun", "disabled") or disabled.lower() in ("true", "1")


def _wandb_key() -> bool:
    """Whether W&B would find a key where it looks for one: environment, settings, netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _wandb_setting("api_key"):
        return True
    address = os.environ.get("WANDB_BASE_URL") or _wandb_setting("base_url")
    hosts = [urlsplit(address).netloc] if address else WANDB_HOSTS
    home, given = Path.home(), os.environ.get("NETRC")
    for path in [Path(given).expanduser()] if given else [home / ".netrc", home / "_netrc"]:
        try:
            if any(map(netrc.netrc(path).authenticators, hosts)):
                return True
        except (OSError, netrc.NetrcParseError):  # W&B passes over such a file, too
            continue
    return False


def _wandb_setting(key: str) -> str:
    """A setting of the files that `wandb login` and `wandb offline` write; nothing where none has it."""
    root = Path(os.environ.get("WANDB_DIR") or ".")
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([folder / "settings", root / "wandb" / "settings", root / ".wandb" / "settings"], "utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return ""
    return settings.get("default", key, fallback="")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _load(name: str) -> Any:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        raise ConfigError(
            "a listener's package is not installed",
            where="train.listeners",
            got=f"{name} ({error})",
            next_step=f'pip install "lightwam[{name}]", or leave it out',
        ) from error
    except Exception as error:  # a package that does not fit the others raises anything while it is imported
        raise ConfigError(
            "a listener's package cannot be imported",
            where="train.listeners",
            got=f"{name} ({_first_line(error)})",
            next_step=f'install it anew (pip uninstall, then pip install "lightwam[{name}]"), or leave it out',
        ) from error
