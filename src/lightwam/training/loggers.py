"""Optional loggers besides log.jsonl: TensorBoard, Weights & Biases, trackio.

A resumed run continues the same W&B or trackio run: its id is stored in loggers.json, and steps that were logged before
a kill are not logged twice. A logger that fails loses its rows, but does not stop the training.
"""

from __future__ import annotations

import configparser
import importlib
import json
import netrc
import os
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightwam.config.schema import Recipe
from lightwam.config.strict_json import to_dict
from lightwam.errors import ConfigError, LightwamError
from lightwam.system.files import write_file
from lightwam.system.progress import Say

Logger = Callable[[int, Mapping[str, float]], None]

FILE, OLD_FILE = "loggers.json", "listeners.json"
"""in the run directory: logger -> its id of the run, and the last step logged before the newest start"""
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
PROJECT = "lightwam"
WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""hosts whose key in netrc is W&B's; the second since wandb 0.31"""


def check(recipe: Recipe) -> None:
    """Raise ConfigError unless the loggers of `recipe.train.loggers` are installed and W&B has a key.

    Uses no network: it checks that a key for Weights & Biases can be found, not that it is valid.
    """
    for name in recipe.train.loggers:
        _load(name)
        if name == "wandb" and not _wandb_is_local() and not _wandb_key():
            step = "`wandb login`, or set WANDB_API_KEY; WANDB_MODE=offline needs neither"
            got = "no WANDB_API_KEY, and no log-in on this machine"
            raise ConfigError("W&B must have an API key", where="train.loggers", got=got, next_step=step)


@contextmanager
def open_loggers(
    recipe: Recipe, run: Path, is_main: bool = True, *, begun: int = 0, logged: int = 0, say: Say = print
) -> Iterator[list[Logger]]:
    """Open the loggers of `recipe.train.loggers` and close them at the end; ConfigError when one cannot start.

    Only the main process has any. Training resumes at step `begun`; rows up to step `logged` were logged before, which
    is more than `begun` when a process was killed. A logger that fails later is reported once to `say` and gets no more
    rows.
    """
    with ExitStack() as stack:
        yield [_open(name, recipe, run, stack, begun, logged, say) for name in recipe.train.loggers if is_main]


def _open(name: str, recipe: Recipe, run: Path, stack: ExitStack, begun: int, logged: int, say: Say) -> Logger:
    module = _load(name)
    try:
        if name == "tensorboard":
            log, close = _tensorboard(module, run, begun, stack)
        else:
            log, close = _tracker(name, module, recipe, run, logged)
    except LightwamError:
        raise
    except Exception as error:  # each package has its own errors, which change with its version
        advice = {
            "wandb": "check key and network (`wandb login`), or set WANDB_MODE=offline",
            "trackio": "check its settings",
            "tensorboard": "check the permissions",
        }
        again = f"; delete {run / FILE} to begin a new run there" if (run / FILE).exists() else ""
        what, step = f"the logger {name} cannot start", f"{advice[name]}, or leave it out{again}"
        raise ConfigError(what, where="train.loggers", got=_first_line(error), next_step=step) from error
    guarded = _Guarded(name, log, say)
    stack.callback(guarded.attempt, close)
    return guarded


class _Guarded:
    """A logger whose first failure is reported and stops it, not the training."""

    def __init__(self, name: str, log: Logger, say: Say) -> None:
        self.name, self.log, self.say, self.failed = name, log, say, False

    def __call__(self, step: int, row: Mapping[str, float]) -> None:
        self.attempt(lambda: self.log(step, row), f" at step {step}")

    def attempt(self, call: Callable[[], Any], when: str = "") -> None:
        """Call `call` and report its failure, unless something failed before."""
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # network, disk, or a bug of the package: never stops the training
            self.failed, reason = True, _first_line(error)
            self.say(f"train: the logger {self.name} failed{when} and is stopped ({reason}); log.jsonl has every row")


def _tensorboard(module: Any, run: Path, begun: int, stack: ExitStack) -> tuple[Logger, Callable[[], Any]]:
    before = threading.excepthook
    stack.callback(setattr, threading, "excepthook", before)

    def hook(args: threading.ExceptHookArgs) -> None:
        # an error that stops TensorBoard's thread needs no traceback: the next call raises it again
        if not type(args.thread).__module__.startswith("tensorboard"):
            before(args)

    threading.excepthook = hook
    # hide what a killed process wrote after its last checkpoint: those steps are trained again
    writer = module.SummaryWriter(str(run / "tensorboard"), purge_step=begun + 1 if begun else None)

    def log(step: int, row: Mapping[str, float]) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, step)

    return log, writer.close


def _tracker(name: str, module: Any, recipe: Recipe, run: Path, logged: int) -> tuple[Logger, Callable[[], Any]]:
    """Open W&B or trackio, which share one interface; W&B identifies a run by its id, trackio by its name."""
    known, title = _read_ids(run), f"{recipe.name}-{run.absolute().name}"
    if (before := known.get(name)) is None:
        # trackio merges runs of the same name, and another run directory may have this name
        fresh = os.environ.get("WANDB_RUN_ID") if name == "wandb" else f"{title}-{secrets.token_hex(2)}"
        before = {"run": fresh or secrets.token_hex(4), "step": 0}
    else:
        before = {"run": before["run"], "step": max(before["step"], logged)}
    write_file(run / FILE, json.dumps(known | {name: before}, indent=2) + "\n")  # before init: a kill must not lose it
    identity = {"id": before["run"], "name": title} if name == "wandb" else {"name": before["run"]}
    module.init(project=PROJECT, config=to_dict(recipe), resume="allow", **identity)

    def log(step: int, row: Mapping[str, float]) -> None:
        if step > before["step"]:
            module.log(dict(row), step=step)

    return log, module.finish


def _read_ids(run: Path) -> dict[str, Any]:
    path = run / FILE
    if not path.is_file() and (run / OLD_FILE).is_file():
        path = run / OLD_FILE
        warnings.warn(f"{path} is now {FILE}", FutureWarning, stacklevel=2)
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"run": str(entry["run"]), "step": int(entry["step"])} for name, entry in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what, step = 'it must be {"wandb": {"run": "an id", "step": 0}}', "delete it: loggers begin a new run then"
        raise ConfigError(what, where=path, got=_first_line(error), next_step=step) from error


def _wandb_is_local() -> bool:
    disabled = _wandb_setting("disabled").lower() in ("true", "1")
    return disabled or _wandb_setting("mode") in ("offline", "dryrun", "disabled")


def _wandb_key() -> bool:
    """Return whether W&B would find a key in the environment, its settings or netrc."""
    if _wandb_setting("api_key") or _wandb_setting("identity_token_file"):
        return True
    address, netrc_path = _wandb_setting("base_url"), os.environ.get("NETRC")
    hosts = [urlsplit(address).netloc] if address else WANDB_HOSTS
    for path in map(Path, [netrc_path] if netrc_path else ["~/.netrc", "~/_netrc"]):
        try:
            if any(map(netrc.netrc(path.expanduser()).authenticators, hosts)):
                return True
        except (OSError, netrc.NetrcParseError):  # W&B ignores such a file, too
            continue
    return False


def _wandb_setting(key: str) -> str:
    """Read a setting from the environment or a file that `wandb login` and `wandb offline` write; "" if not set."""
    if value := os.environ.get(f"WANDB_{key.upper()}"):
        return value
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
    except Exception as error:  # a package that does not fit the others raises anything while it is imported
        what, step = "the logger's package must be installed", f'pip install "lightwam[{name}]", or leave it out'
        if not isinstance(error, ImportError):
            what, step = "the logger's package cannot be imported", f"pip uninstall it, then {step}"
        got = f"{name} ({_first_line(error)})"
        raise ConfigError(what, where="train.loggers", got=got, next_step=step) from error
