"""Train a small policy with the actions of few demonstrations, and evaluate it: a row of the table (README.md).

    python examples/few_actions/few_actions.py DATASET more-video --seed 0 [--foresight 1] [--tasks reach] [...]

Arms: `actions`, the action loss alone; `video`, the video loss of the same demonstrations besides; `more-video`, also
the video loss of all other demonstrations, without their actions; `no-loss`, the samples of more-video, but the action
loss alone: latents are fitted on the pictures of all demonstrations, and half of a batch teaches nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from lightwam.config.recipes import RECIPES
from lightwam.data.lerobot.meta import read_parquet
from lightwam.sim.registry import make_simulator

ARMS = ("actions", "video", "more-video", "no-loss")
WITH_OTHERS = ("more-video", "no-loss")


def main() -> None:
    """Train and evaluate the run that the command line asks for, in OUT/NAME."""
    parser = argparse.ArgumentParser(description="Train and evaluate one row: README.md.")
    parser.add_argument("dataset", type=Path, help="of lightwam collect RECIPE")
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--recipe", choices=("demo", "point"), default="demo")
    parser.add_argument("--tasks", nargs="+", help="of the recipe; by default all")
    parser.add_argument("--demos", type=int, default=10, help="demonstrations of each task with actions")
    parser.add_argument("--weight", type=float, default=1.0, help="of the others: samples for each one with actions")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--foresight", type=int, default=0, help="model.foresight")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=50, help="unseen episodes of each task")
    parser.add_argument("--out", type=Path, default=Path("runs/few-actions"))
    args = parser.parse_args()
    parts = [
        args.arm,
        "+".join(args.tasks or [args.recipe]),
        f"foresight{args.foresight}",
        f"demos{args.demos}",
        f"steps{args.steps}",
        f"seed{args.seed}",
    ]
    if args.arm in WITH_OTHERS and args.weight != 1:
        parts.insert(2, f"weight{args.weight:g}")
    run = args.out / "-".join(parts)
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".toml")
    sim = RECIPES[args.recipe]().simulation
    tasks = args.tasks or sim.tasks
    sentences = {make_simulator(sim, task).instruction for task in tasks}
    file.write_text(
        recipe_text(args.recipe, args.dataset.resolve(), sentences, args.arm, args.demos, args.weight), encoding="utf-8"
    )
    settings = ["--train.steps", args.steps, "--train.save-every", args.steps, "--train.batch-size", args.batch_size]
    settings += ["--train.seed", args.seed, "--model.foresight", args.foresight, "--sim.tasks", *tasks]
    if args.arm in ("actions", "no-loss"):
        settings += ["--model.video-loss-weight", 0]
    clocked("train", file, "--run", run, *settings)
    clocked("eval", run, "--eval.trials", args.trials, "--eval.workers", 1, "--eval.videos-per-task", 0)


def recipe_text(recipe: str, dataset: Path, sentences: Collection[str], arm: str, demos: int, weight: float) -> str:
    """Return a recipe file: `demos` demonstrations of each sentence with actions, the others as the arm says."""
    episodes: dict[str, list[int]] = defaultdict(list)
    for file in sorted((dataset / "meta/episodes").rglob("*.parquet")):
        table = read_parquet(file, ["episode_index", "tasks"])
        for episode, tasks in zip(table["episode_index"].to_pylist(), table["tasks"].to_pylist(), strict=True):
            if tasks[0] in sentences:
                episodes[tasks[0]].append(episode)
    few = sorted(episode for group in episodes.values() for episode in sorted(group)[:demos])
    lines = [f'base = "{recipe}"', "[[sources]]", f"path = '{dataset}'", f"episodes = {few}"]
    if arm in WITH_OTHERS:
        others = sorted({episode for group in episodes.values() for episode in group} - set(few))
        lines += [
            "[[sources]]",
            f"path = '{dataset}'",
            f"episodes = {others}",
            'actions = "none"',
            f"weight = {weight}",
        ]
    return "\n".join(lines) + "\n"


def clocked(command: str, *words: object) -> None:
    """Run a command of lightwam, and say how many processor seconds it took."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "lightwam", command, *map(str, words)], check=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{command}: {seconds:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
