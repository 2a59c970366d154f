"""A run directory with everything that a report shows: synthetic numbers, and pictures and videos of moving squares."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lightwam.config.recipe_files import recipe
from lightwam.config.strict_json import to_dict
from lightwam.evaluation.statistics import wilson

POINT = recipe("point")
PLAN = replace(
    POINT,
    collect=replace(POINT.collect, demos_per_task=20),
    train=replace(POINT.train, steps=300, batch_size=16, log_every=10),
)
"""sizes of this file's own, so that tests do not follow the recipe's"""
TASKS = {"red": "move to the red dot", "blue": "move to the <blue> dot"}
SIZE, FRAMES, QUERIES, TOKENS, TRIALS = 32, 5, 6, 2, 5
FIRST_SEED = 1_000_000


def write_run(run: Path, tasks: dict[str, str] = TASKS, width: int = SIZE) -> Path:
    """Write a run of these tasks (name -> instruction), with pictures of SIZE x `width` pixels."""
    plan = replace(PLAN, sim=replace(PLAN.sim, tasks=tuple(tasks)))
    videos = {task: moving_square(i, 12, width) for i, task in enumerate(tasks)}
    run.mkdir(parents=True)
    write_json(run / "recipe.json", to_dict(plan))
    write_json(run / "dataset.json", {"path": "x", "episodes": 40, "fingerprint": {}})
    write_log(run, plan.train.steps, plan.train.log_every)
    write_evaluation(run, tasks, videos)
    write_probe(run / "eval" / "probe.npz", tasks, videos, plan.model.backbone.taps)
    write_watch(run, next(iter(tasks)), width)
    write_weights(run)
    return run


def write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def moving_square(colour: int, frames: int, width: int = SIZE) -> np.ndarray:
    """A square, red (0) or of another colour, that moves over a grey background: uint8 [frames, SIZE, width, 3]."""
    video = np.full((frames, SIZE, width, 3), 60, np.uint8)
    for i in range(frames):
        at = int((SIZE - 8) * i / max(frames - 1, 1))
        video[i, at : at + 8, at : at + 8] = (220, 60, 40) if colour == 0 else (40, 90, 220)
    return video


def write_video(path: Path, frames: np.ndarray) -> None:
    """An H.264 mp4 of uint8 frames [T, h, w, 3]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 20)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_log(run: Path, steps: int, every: int) -> None:
    rng = np.random.default_rng(0)
    with (run / "log.jsonl").open("w", encoding="utf-8") as file:
        for step in range(every, steps + 1, every):
            video, action = 0.1 + 0.9 * np.exp(-step / 400), 0.004 + 0.4 * np.exp(-step / 300)
            video, action = (value * float(np.exp(0.15 * rng.standard_normal())) for value in (video, action))
            row = {
                "step": step,
                "loss": video + action,
                "loss_video": video,
                "loss_action": action,
                "grad_norm": 0.4 + 0.2 * rng.random(),
                "learning_rate": 1e-3 * min(step / 100, 1 - step / (steps + 1)),
                "samples_per_second": 240 + 10 * rng.standard_normal(),
                "seconds": 0.13 * step,
                "wait_share": 0.004 * rng.random(),
            }
            file.write(json.dumps(row) + "\n")


def rate(successes: int, trials: int) -> dict[str, Any]:
    return {"successes": successes, "trials": trials, "interval_95": wilson(successes, trials)}


def write_evaluation(run: Path, tasks: dict[str, str], videos: dict[str, np.ndarray]) -> None:
    """Of every task TRIALS episodes, the first two recorded; the n-th task fails in its first n episodes."""
    folder, rows, rates = run / "eval", [], {}
    for order, (task, instruction) in enumerate(tasks.items()):
        rates[task] = rate(TRIALS - order, TRIALS) | {"instruction": instruction}
        for i in range(TRIALS):
            success, seed = i >= order, FIRST_SEED + i
            name = f"videos/{task}-{seed}-{'success' if success else 'failure'}.mp4" if i < 2 else None
            if name:
                write_video(folder / name, videos[task])
            row = {"task": task, "seed": seed, "success": success, "steps": 40, "video": name}
            row |= {"steps_to_success": 31 if success else None, "seconds": 1.5, "wall_seconds": 2.5, "infer_ms": [1.0]}
            rows.append(row)
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    won, trials = sum(row["success"] for row in rows), len(rows)
    protocol = {
        "eval": {"trials": TRIALS, "replan": 8, "first_seed": FIRST_SEED},
        "sim": to_dict(replace(PLAN.sim, tasks=tuple(tasks), max_steps=77)),
        "versions": {"torch": "2.13.0"},
    }
    latency = {"p50": 14.2, "p95": 18.9, "p99": 25.1}
    result = rate(won, trials) | {"tasks": rates, "protocol": protocol, "latency_ms": latency}
    write_json(folder / "protocol.json", protocol)
    write_json(folder / "result.json", result | {"wall_seconds": {"total": 104.0}})
    wall = {"collect": 171.0, "cache": 9.0, "train": 470.0, "eval": 104.0, "total": 760.0}
    write_json(run / "result.json", result | {"machine": {"cores": 2}, "wall_seconds": wall})
    sentences, none = list(tasks.values()), {"successes": 0, "trials": TRIALS}
    swapped = {
        task: {"right": none | {"successes": TRIALS}, "swapped": none, "swapped_instruction": sentences[i - 1]}
        for i, task in enumerate(tasks)
    }
    totals = {"right": {"successes": won, "trials": trials}, "swapped": {"successes": 1, "trials": trials}}
    write_json(folder / "swap.json", totals | {"tasks": swapped})


def write_probe(path: Path, tasks: dict[str, str], videos: dict[str, np.ndarray], taps: tuple[int, ...]) -> None:
    """Two moments of every task; the predicted future is the real one's mean with noise."""
    rng, names = np.random.default_rng(1), [task for task in tasks for _ in range(2)]
    real = np.stack([videos[task][np.linspace(0, len(videos[task]) - 1, FRAMES).astype(int)] for task in names])
    mean = np.concatenate([real[:, :1], real[:, 1:].mean(1, keepdims=True).repeat(FRAMES - 1, 1)], 1)
    weight = rng.dirichlet(np.full(TOKENS * TOKENS, 0.08), (len(names), len(taps), QUERIES))
    np.savez_compressed(
        path,
        tasks=np.asarray(names),
        instructions=np.asarray([tasks[task] for task in names]),
        seeds=np.full(len(names), FIRST_SEED),
        steps=np.asarray([0, 24] * len(tasks)),
        fps=np.float64(20.0),
        video_stride=np.int64(4),
        imagine_steps=np.int64(20),
        taps=np.asarray(taps),
        real=real,
        imagined=np.clip(mean + rng.normal(0, 4, mean[:, :1].shape), 0, 255).astype(np.uint8),
        real_coded=mean.astype(np.uint8),
        real_is_pad=np.zeros(real.shape[:2], bool),
        attention=weight.reshape(len(names), len(taps), QUERIES, TOKENS, TOKENS).astype(np.float32),
    )


def write_watch(run: Path, task: str, width: int) -> None:
    """Two kinds of disturbance; each example has three observations, and the second one raises an alarm."""

    def detector(area: float) -> dict[str, object]:
        curve = [[0.0, 0.0, 1.0], [0.0, 0.8, 1.0]]
        return {"area": area, "interval_95": [area - 0.1, 1.0], "curve": curve, "alarms": 9, "delay_steps": 3.0}

    detectors = {"watch": detector(0.9), "without the world model": detector(0.8), "picture difference": detector(0.6)}
    gain = {"without the world model": {"area": 0.1, "interval_95": [-0.02, 0.2]}}
    kind = {"episodes": 10, "ways": detectors, "gain_over": gain, "gain_over_soon": gain}
    example = {"task": task, "seed": 4, "look": 0, "disturbed_at": 2, "scores": [5.5, 1.0]}
    example |= {"look_steps": [4, 8], "threshold": 3.0}
    result = {
        "calibration_episodes": 80,
        "soon_steps": 8,
        "false_alarms": 0.05,
        "kinds": {"any": kind, "object": kind, "frozen": kind},
        "examples": [example | {"kind": name} for name in ("object", "frozen")],
        "quiet": {"episodes": 10, "alarms": {name: 1 for name in detectors}},
        "cost_ms": {"see": {"p50_ms": 1.5}, "act": {"p50_ms": 3.0}},
    }
    write_json(run / "watch" / "result.json", result)
    pictures = {"object": moving_square(0, 3, width), "frozen": moving_square(1, 3, width)}
    np.savez(run / "watch" / "examples.npz", **pictures)


def write_weights(run: Path) -> None:
    """A checkpoint with the header alone, and next to it a folder that a person set aside, which is not the run's."""
    entry = {"dtype": "F32", "shape": [1000, 3000], "data_offsets": [0, 0]}
    header = json.dumps({"a": entry, "__metadata__": {}}).encode()
    for name, data in (("step_00003000", len(header).to_bytes(8, "little") + header), ("step_00003000.bak", b"")):
        folder = run / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(data)
