"""Training: one loop, readable from top to bottom, and the same bits whether or not it was interrupted.

Whatever is random is drawn from (seed, step), so a checkpoint holds weights, averages, optimiser and the loader's
place, and nothing else is needed to go on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lightwam import checkpoint
from lightwam.checkpoint import Checkpoint, Weights
from lightwam.codec import Codec
from lightwam.config import Recipe, TrainConfig, check
from lightwam.data.cache import FrameCache
from lightwam.data.lerobot import LeRobotDataset
from lightwam.data.loader import WindowLoader
from lightwam.errors import CheckpointError, DatasetError
from lightwam.latents.dct import DctLatents
from lightwam.listeners import Listener, listen
from lightwam.model.light_wam import LightWAM
from lightwam.optimizer import Optimizer
from lightwam.progress import Progress
from lightwam.text.hashed import HashedText
from lightwam.types import Batch, Windows

FIT_FRAMES = 256
"""pictures, evenly spaced over the dataset, that the latents' statistics are measured on"""


@dataclass(frozen=True)
class Processing:
    """From the loader's windows to the model's batches."""

    codec: Codec
    latents: DctLatents
    prompts: Float[Tensor, "tasks L E"]
    """text states of every task sentence of the dataset"""

    def batch(self, windows: Windows) -> Batch:
        """Encode one batch of windows."""
        return Batch(
            latents=self.latents.encode(self.codec.pixels(windows.frames)),
            context=self.prompts[torch.from_numpy(windows.task)],
            state=torch.from_numpy(windows.state),
            action=torch.from_numpy(windows.action),
            action_is_pad=torch.from_numpy(windows.action_is_pad),
            frame_is_pad=torch.from_numpy(windows.frame_is_pad),
        )


def train(
    recipe: Recipe, dataset: Path, run: Path, *, stop_after: int | None = None, say: Callable[[str], None] = print
) -> Path:
    """Train `recipe` on the LeRobot dataset at `dataset` into the directory `run`, going on where it stopped.

    `stop_after` ends the session early, after that step and its checkpoint (0: before the first). Returns `run`.
    Raises CheckpointError when `run` holds another recipe, began with another dataset or has a damaged checkpoint,
    DatasetError when the data do not fit or the loss is not finite.
    """
    check(recipe)
    checkpoint.start_run(run, recipe)
    cache, processing = open_data(recipe, dataset, run, say)
    torch.manual_seed(recipe.train.seed)
    session = Session(recipe, cache, processing)
    if checkpoint.steps(run):
        session.resume(checkpoint.load(run))
        say(f"going on from step {session.step}")
    _cut_log(run / "log.jsonl", session.step)
    last = min(recipe.train.steps, recipe.train.steps if stop_after is None else stop_after)
    with (
        listen(recipe, run) as listeners,
        session.loader,
        Progress("train", last, session.step, "step", say) as progress,
    ):
        _loop(session, last, run, listeners, progress)
    return run


def open_data(
    recipe: Recipe, dataset: Path, run: Path, say: Callable[[str], None] = print
) -> tuple[FrameCache, Processing]:
    """The decoded dataset and its processing; statistics are measured once and then belong to the run.

    Raises DatasetError when the dataset does not fit the model, CheckpointError when the run began with another.
    """
    data = LeRobotDataset(dataset)
    fingerprint = data.fingerprint()
    if (run / "processing.json").exists():
        checkpoint.check_dataset(run, dataset, fingerprint)
    cache = open_cache(data, recipe, dataset / "cache", say)
    for name, got, expected in (
        ("observation.state", cache.state.shape[1], recipe.model.state_dim),
        ("action", cache.action.shape[1], recipe.model.action_dim),
    ):
        if got != expected:
            raise DatasetError(
                "the dataset does not fit the model", where=f"{dataset}: {name}", got=got, expected=expected
            )
    if not (run / "processing.json").exists():
        chosen = torch.linspace(0, len(cache.frames) - 1, min(FIT_FRAMES, len(cache.frames))).long().tolist()
        codec = Codec(recipe.codec, data.stats["observation.state"], data.stats["action"])
        pixels = codec.pixels(cache.frames[chosen][:, None])[:, :, 0]
        checkpoint.write_dataset(run, dataset, fingerprint)
        checkpoint.write_processing(run, codec, DctLatents.fit(recipe.latents, pixels))
    codec, latents = checkpoint.read_processing(run)
    prompts = HashedText(recipe.text).encode([recipe.prompt.format(task=task) for task in cache.tasks])
    return cache, Processing(codec, latents, prompts)


def open_cache(data: LeRobotDataset, recipe: Recipe, path: Path, say: Callable[[str], None]) -> FrameCache:
    """The decoded pictures at `path`: decoded when there are none, or ones of other data or another codec."""
    with ExitStack() as stack:
        lines: list[Progress] = []

        def tell(done: int, total: int) -> None:
            if not lines:  # said only when there is something to decode
                lines.append(stack.enter_context(Progress("decode", total, unit="frame", say=say)))
            lines[0].advance(count=done - lines[0].done)

        return FrameCache.fresh(data, recipe.codec, path, tell)


class Session:
    """All that changes while training."""

    def __init__(self, recipe: Recipe, cache: FrameCache, processing: Processing) -> None:
        settings = recipe.train
        self.recipe, self.processing, self.step, self.seconds = recipe, processing, 0, 0.0
        self.model = LightWAM(recipe.model)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.ema: Weights = {name: p.detach().clone() for name, p in self.trained.items()} if settings.ema_decay else {}
        self.optimizer = Optimizer(self.trained, settings)
        self.loader = WindowLoader(
            cache, processing.codec, recipe.model.horizon, settings.batch_size, settings.seed, settings.shift_pixels
        )

    def advance(self) -> dict[str, float]:
        """One optimiser step; returns its losses, gradient norm and learning rate."""
        settings = self.recipe.train
        batch = self.processing.batch(self.loader.next())
        u, noise = flow_draw(settings.seed, self.step, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
            losses = self.model.loss(batch, u, noise)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), settings.clip_norm)
        rate = learning_rate(self.step, settings)
        self.optimizer.step(rate / settings.learning_rate)
        self.step += 1
        if self.ema:
            keep = ema_keep(self.step, settings.ema_decay)
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.trained.values()], 1 - keep)
        return {
            "loss": losses.total.item(),
            "loss_video": losses.video.item(),
            "loss_action": losses.action.item(),
            "grad_norm": norm.item(),
            "learning_rate": rate,
        }

    def snapshot(self) -> Checkpoint:
        """All of it, for the disk."""
        model = {name: value.detach() for name, value in self.model.state_dict().items()}
        training = {
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "seconds": self.seconds,
        }
        return Checkpoint(self.step, model, {**model, **self.ema} if self.ema else None, training)

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint of the same recipe."""
        if sorted(saved.training) != ["loader", "optimizer", "seconds"] or (saved.ema is None) != (not self.ema):
            raise CheckpointError(
                "not a checkpoint to go on from", where=f"step {saved.step}", got=sorted(saved.training)
            )
        checkpoint.fill(self.model, saved.model, f"step {saved.step}")
        for name, value in self.ema.items():
            assert saved.ema is not None
            value.copy_(saved.ema[name])
        self.optimizer.load_state_dict(saved.training["optimizer"])
        self.loader.load_state_dict(saved.training["loader"])
        self.step, self.seconds = saved.step, saved.training["seconds"]


def _loop(session: Session, last: int, run: Path, listeners: list[Listener], progress: Progress) -> None:
    settings, since, waited = session.recipe.train, time.perf_counter(), session.loader.wait_seconds
    steps_then = session.step
    while session.step < last:
        row = session.advance()
        if not math.isfinite(row["loss"]):
            raise DatasetError(
                "the loss is not finite",
                where=f"step {session.step}",
                got=row,
                expected="a number",
                next_step="lower train.learning_rate, or look at the data with `lightwam check dataset`",
            )
        due = session.step % settings.log_every == 0 or session.step == last
        if due:
            now = time.perf_counter()
            session.seconds += now - since
            row |= {
                "samples_per_second": settings.batch_size * (session.step - steps_then) / (now - since),
                "wait_share": (session.loader.wait_seconds - waited) / (now - since),
                "seconds": session.seconds,
            }
            since, waited, steps_then = now, session.loader.wait_seconds, session.step
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": session.step, **row}) + "\n")
            for listener in listeners:
                listener(session.step, row)
        progress.advance(f"loss {row['loss']:.4f}  action {row['loss_action']:.4f}  video {row['loss_video']:.4f}")
        if session.step % settings.save_every == 0 or session.step == last:
            checkpoint.save(run, session.snapshot())


def flow_draw(seed: int, step: int, batch: Batch) -> tuple[Float[Tensor, " B"], Float[Tensor, "B C T h2 w2"]]:
    """The flow's uniform numbers (stratified over the batch: every step sees all noise levels) and noise."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    size, channels, frames, height, width = batch.latents.shape
    u = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    u = u[torch.randperm(size, generator=generator)].clamp(1e-4, 1 - 1e-4)
    return u, torch.randn(size, channels, frames, height // 2, width // 2, generator=generator)


def learning_rate(step: int, settings: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to `final_learning_rate` at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    low = settings.final_learning_rate
    return low + (settings.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def ema_keep(step: int, decay: float) -> float:
    """How much of the average a step keeps: less at first, so that the start's random weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines that a killed session wrote after its last checkpoint: they will be written again."""
    if path.exists():
        kept = list(_lines_up_to(path, step))
        beside = path.with_name(".log.jsonl")
        beside.write_text("".join(kept))
        beside.replace(path)


def _lines_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            yield line


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch's compute threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
