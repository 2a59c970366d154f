"""Folders of evaluations, made without a simulator."""

import json
from pathlib import Path
from typing import Any

PROTOCOL = {
    "sim": {"name": "point", "tasks": ["red", "blue"], "max_steps": 40},
    "eval": {"trials": 3, "replan": 4, "first_seed": 10},
    "recipe": "point",
    "checkpoint_step": 100,
    "weights": "ema",
    "computes": "float32 on cpu",
    "sentences": {},
    "success": "at any control step",
    "versions": {"python": "3.11.7", "torch": "2.13.0", "mujoco": "3.3.0"},
}


def evaluation(place: Path, outcomes: dict[tuple[str, int], bool], **protocol: Any) -> Path:
    place.mkdir(parents=True)
    (place / "protocol.json").write_text(json.dumps(PROTOCOL | protocol), encoding="utf-8")
    rows = [
        {"task": task, "seed": seed, "success": success, "steps": 9, "steps_to_success": None, "seconds": 1.0,
         "wall_seconds": 1.0, "infer_ms": [1.0], "video": None}
        for (task, seed), success in outcomes.items()
    ]  # fmt: skip
    lines = [json.dumps(row) + "\n" for row in rows]
    (place / "episodes.jsonl").write_text("".join(lines) + '{"task": "re', encoding="utf-8")
    return place
