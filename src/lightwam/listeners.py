"""Optional listeners to the training log: TensorBoard, Weights & Biases, trackio. log.jsonl stays the truth."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightwam.config import Recipe, to_dict
from lightwam.errors import ConfigError

Listener = Callable[[int, Mapping[str, float]], None]


@contextmanager
def listen(recipe: Recipe, run: Path, leads: bool = True) -> Iterator[list[Listener]]:
    """The listeners that `recipe.train.listeners` names, closed at the end; ConfigError names a missing one's extra.

    Of processes that train together only the one that leads has any.
    """
    with ExitStack() as stack:
        yield [_open(name, recipe, run, stack) for name in recipe.train.listeners if leads]


def _open(name: str, recipe: Recipe, run: Path, stack: ExitStack) -> Listener:
    if name == "tensorboard":
        writer = _load("torch.utils.tensorboard", name).SummaryWriter(str(run / "tensorboard"))
        stack.callback(writer.close)

        def write(step: int, row: Mapping[str, float]) -> None:
            for key, value in row.items():
                writer.add_scalar(key, value, step)

        return write
    # wandb and trackio share one interface
    tracker = _load(name, name)
    tracker.init(project="lightwam", name=f"{recipe.name}-{run.name}", config=to_dict(recipe))
    stack.callback(tracker.finish)
    return lambda step, row: tracker.log(dict(row), step=step)


def _load(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "a listener's package is not installed",
            where="train.listeners",
            got=f"{extra} ({error})",
            next_step=f'pip install "lightwam[{extra}]", or leave it out',
        ) from error
