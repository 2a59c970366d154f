"""Training: one loop, readable from top to bottom, and the same bits whether or not it was interrupted.

Whatever is random is drawn from (seed, step), so a checkpoint holds weights, averages, optimiser and the loader's
place, and nothing else is needed to go on. Under torchrun every process runs this same code on its rows of each batch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.config.checks import check_recipe
from lightwam.config.schema import Recipe, TrainConfig
from lightwam.data.cache.base import Cache
from lightwam.data.lerobot.features import FeatureNames
from lightwam.data.loader import WindowLoader
from lightwam.engine.packed_step import PackedLoss
from lightwam.errors import CheckpointError, ConfigError, DatasetError
from lightwam.model.light_wam import LightWAM
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Checkpoint, Weights
from lightwam.system.cpu import fast_matmuls
from lightwam.system.devices import oom_as_config_error
from lightwam.system.files import append_line, complete_lines, write_file
from lightwam.system.progress import Progress
from lightwam.training import distributed, loggers
from lightwam.training.dataset import Processing, open_training_data
from lightwam.training.distributed import Parallel, World
from lightwam.training.loggers import Logger, open_loggers
from lightwam.training.optimizer import Optimizer
from lightwam.training.start import Start, Statistics, load_start
from lightwam.training.wan_backbone import load_backbone
from lightwam.types import Batch


def train(
    recipe: Recipe,
    dataset: Path | str,
    run: Path | str,
    *,
    stop_after: int | None = None,
    say: Callable[[str], None] = print,
    device: str = "auto",
    parallel: Parallel = "ddp",
    start_from: Path | None = None,
    names: FeatureNames | None = None,
    statistics: Statistics = "kept",
    cache: Path | None = None,
) -> Path:
    """Train `recipe` on the LeRobot dataset at `dataset` into the directory `run`, going on where it stopped.

    `stop_after` ends the session early, after that step and its checkpoint (0: before the first). `device` is "auto"
    (a GPU where there is one), "cpu" or "cuda"; `parallel` says how processes under torchrun share the work. A new run
    takes its first weights from the run `start_from`, if given; else the recipe's pretrained ones, or random. With
    `start_from` it keeps that run's `statistics` of state, action and latents ("kept") or measures its own ("new"),
    says which, and never changes them later. `names`: the features of a dataset without LeRobot's names; a run keeps
    them. `cache` as in `processing.open_training_data`. Returns `run`.

    Raises CheckpointError when `run` holds another recipe, began with another dataset, start or names, or has a damaged
    checkpoint, or `start_from` does not fit; DatasetError when the data do not fit or the loss is not finite;
    ConfigError when memory runs out, or a listener is not installed or has no credentials.
    """
    dataset, run = Path(dataset), Path(run)
    check_recipe(recipe)
    if parallel == "fsdp" and recipe.train.muon_learning_rate:
        raise ConfigError("Muon needs whole matrices, fsdp gives it parts", where="parallel", got="fsdp",
                          expected="ddp", next_step="--parallel ddp, or --train.muon-learning-rate 0")  # fmt: skip
    with distributed.process_group(device) as world:
        if world.is_main:
            loggers.check(recipe)
        with world.main_first():
            start = load_start(run, recipe, start_from, statistics)
            opened, processing = open_training_data(recipe, dataset, run, say, names=names, start=start, cache=cache)
        torch.manual_seed(recipe.train.seed)
        with oom_as_config_error(f"the start, on {world.device}", "a larger device, or more of them (--parallel fsdp)"):
            session = _start(recipe, run, start, opened, processing, world, parallel)
        del start  # its weights are in the model now
        if session.step and world.is_main:
            say(f"going on from step {session.step}")
        world.barrier()
        heard = _cut_log(run / "log.jsonl", session.step) if world.is_main else 0
        last = min(recipe.train.steps, recipe.train.steps if stop_after is None else stop_after)
        with (
            open_loggers(recipe, run, world.is_main, begun=session.step, heard=heard, say=say) as opened_listeners,
            session.loader,
            Progress("train", last, session.step, "step", say, silent=not world.is_main) as progress,
        ):
            _loop(session, last, run, opened_listeners, progress)
    return run


def _start(
    recipe: Recipe,
    run: Path,
    start: Start | None,
    cache: Cache,
    processing: Processing,
    world: World,
    parallel: Parallel,
) -> Session:
    """A session at the run's newest checkpoint or, before there is one, at its beginning."""
    model = LightWAM(recipe.model)
    if not world.broadcast(bool(run_directory.steps(run))):
        if start is not None:
            run_directory.load_strict(model, start.weights, start.run)
        elif recipe.weights:
            load_backbone(model.dit, recipe.weights)
        return Session(recipe, model, cache, processing, world, parallel)
    saved = run_directory.load(run)
    run_directory.load_strict(model, run_directory.run_weights(run, saved, ema=False), run)
    session = Session(recipe, model, cache, processing, world, parallel)
    session.resume(saved)
    return session


def _smaller(train: TrainConfig, micro: int) -> str:
    """What to lower when `micro` samples at a time do not fit."""
    fitting = [size for size in range(1, micro) if train.batch_size % size == 0]
    ways = [f"--train.micro-batch {fitting[-1]}"] if fitting else ["--parallel fsdp over more GPUs"]
    ways += [] if train.checkpointing else ["--train.checkpointing"]
    return f"{' or '.join(ways)}; the run goes on where it was"


class Session:
    """All that changes while training. `model` is brought to the recipe's precision and the process's device."""

    def __init__(
        self,
        recipe: Recipe,
        model: LightWAM,
        cache: Cache,
        processing: Processing,
        world: World,
        parallel: Parallel = "ddp",
    ) -> None:
        settings = recipe.train
        self.recipe, self.processing, self.world, self.step, self.seconds = recipe, processing, world, 0, 0.0
        self.loader = WindowLoader(
            cache, processing.codec, recipe.model.horizon, settings.batch_size, settings.seed, settings.shift_pixels,
            world.process,
        )  # fmt: skip
        dtype = getattr(torch, settings.precision)
        sharded = parallel == "fsdp" and world.size > 1
        self.model = model.to(world.device, torch.float32 if sharded else dtype)
        self.loss = distributed.parallelise(
            PackedLoss(self.model, settings.checkpointing), world, parallel, dtype,
            all_used=recipe.model.video_loss_weight > 0,
        )  # fmt: skip
        self.optimizer = Optimizer({name: p for name, p in self.model.named_parameters() if p.requires_grad}, settings)
        self.trained = self.optimizer.masters
        self.ema: Weights = {name: p.detach().clone() for name, p in self.trained.items()} if settings.ema_decay else {}

    def advance(self) -> dict[str, float]:
        """One optimiser step; returns its losses, gradient norm and learning rate."""
        settings, world = self.recipe.train, self.world
        batch = self.processing.batch(self.loader.next()).to(world.device)
        u, noise = flow_draw(settings.seed, self.step, settings.batch_size, batch.clip, world.process.rank)
        total, video, action = world.mean(self.gradients(batch, u, noise)).tolist()
        norm = float(distributed.gather(self.optimizer.clip(settings.clip_norm)))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise DatasetError(
                "the loss or its gradient is not finite",
                where=f"step {self.step}",
                got={"loss": total, "loss_video": video, "loss_action": action, "grad_norm": norm},
                expected="numbers",
                next_step="lower train.learning_rate, or look at the data with `lightwam check dataset`",
            )
        rate = learning_rate(self.step, settings)
        self.optimizer.step(rate / settings.learning_rate)
        self.step += 1
        if self.ema:
            keep = ema_keep(self.step, settings.ema_decay)
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.trained.values()], 1 - keep)
        return {
            "loss": total,
            "loss_video": video,
            "loss_action": action,
            "grad_norm": norm,
            "learning_rate": rate,
        }

    def gradients(
        self, batch: Batch, u: Float[Tensor, " B"], noise: Float[Tensor, "B C T h2 w2"]
    ) -> Float[Tensor, " 3"]:
        """Add up the gradients of this process's rows, a micro batch at a time; returns the mean losses."""
        size = len(u)
        micro = min(self.recipe.train.micro_batch or size, size)
        means = torch.zeros(3, device=u.device)
        place = self.world.device
        with (
            oom_as_config_error(
                f"step {self.step}, {micro} samples at a time on {place}", _smaller(self.recipe.train, micro)
            ),
            fast_matmuls(place, getattr(torch, self.recipe.train.precision)),
        ):
            for start in range(0, size, micro):
                stop = min(start + micro, size)
                share = (stop - start) / size
                with distributed.sync_on_last(self.loss, last=stop == size):
                    losses = self.loss(batch.rows(start, stop), u[start:stop], noise[start:stop])
                    (losses.total * share).backward()
                means += share * torch.stack([loss.detach().float() for loss in losses])
        return means

    def snapshot(self) -> Checkpoint:
        """All of it, for the disk, gathered from all processes (each has to call it)."""
        keep = self.world.is_main
        model = distributed.gather({name: p.detach() for name, p in self.trained.items()}, keep)
        training = {
            "optimizer": distributed.gather(self.optimizer.state_dict(), keep),
            "loader": self.loader.state_dict(),
            "seconds": self.seconds,
        }
        return Checkpoint(self.step, model, distributed.gather(self.ema, keep) if self.ema else None, training)

    def frozen(self) -> Weights:
        """The weights that training leaves alone, gathered likewise, in the recipe's precision."""
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if not p.requires_grad}
        dtype = getattr(torch, self.recipe.train.precision)
        return {name: value.to(dtype) for name, value in distributed.gather(frozen, self.world.is_main).items()}

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint of the same recipe, whose weights the model has already."""
        if sorted(saved.training) != ["loader", "optimizer", "seconds"] or (saved.ema is None) != (not self.ema):
            raise CheckpointError("not a checkpoint to go on from", where=f"step {saved.step}",
                                  got=sorted(saved.training) or "weights alone (an adopted run)",
                                  next_step="train into another --run, with --start-from this one")  # fmt: skip
        for ours, theirs in ((self.trained, saved.model), (self.ema, saved.ema or {})):
            for name, value in ours.items():
                value.data.copy_(distributed.sharded_like(theirs[name], value.data))
        self.optimizer.load_state_dict(saved.training["optimizer"])
        self.loader.load_state_dict(saved.training["loader"])
        self.step, self.seconds = saved.step, saved.training["seconds"]


def _loop(session: Session, last: int, run: Path, to_listeners: list[Logger], progress: Progress) -> None:
    settings, since, waited = session.recipe.train, time.perf_counter(), session.loader.wait_seconds
    steps_then = session.step
    while session.step < last:
        row = session.advance()
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
            if session.world.is_main:
                append_line(run / "log.jsonl", json.dumps({"step": session.step, **row}))
            for listener in to_listeners:
                listener(session.step, row)
        progress.advance(f"loss {row['loss']:.4f}  action {row['loss_action']:.4f}  video {row['loss_video']:.4f}")
        if session.step % settings.save_every == 0 or session.step == last:
            _save(session, run)


def _save(session: Session, run: Path) -> None:
    first = session.world.broadcast(not run_directory.steps(run))
    saved, frozen = session.snapshot(), session.frozen() if first else {}
    if session.world.is_main:
        if frozen:
            run_directory.write_tensors(run / run_directory.FROZEN, frozen)
        run_directory.save(run, saved)
    session.world.barrier()


def flow_draw(
    seed: int, step: int, batch_size: int, clip: Float[Tensor, "B C T h2 w2"], rank: int = 0
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B C T h2 w2"]]:
    """The flow's uniform numbers (stratified over the batch: every step sees all noise levels) and noise.

    Drawn for all `batch_size` samples of the step; process `rank` gets the rows of its `clip`.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    u = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
    u = u[torch.randperm(batch_size, generator=generator)].clamp(1e-4, 1 - 1e-4)
    noise = torch.randn(batch_size, *clip.shape[1:], generator=generator)
    ours = slice(rank * len(clip), (rank + 1) * len(clip))
    return u[ours].to(clip.device), noise[ours].to(clip.device)


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


def _cut_log(path: Path, step: int) -> int:
    """Drop the lines that a killed session wrote after its last checkpoint: they will be written again.

    Returns the last step in the log before, 0 without lines. An incomplete last line is dropped too; CheckpointError
    names any other broken line.
    """
    if not path.exists():
        return 0
    lines = [(_step_of(line, f"{path}:{number}"), line) for number, line in enumerate(complete_lines(path), 1)]
    kept = "".join(f"{line}\n" for at, line in lines if at <= step)
    if kept.encode() != path.read_bytes():
        write_file(path, kept)
    return max((at for at, _ in lines), default=0)


def _step_of(line: str, where: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("a line of the log is broken", where=where, got=f"{type(error).__name__}: {error}",
                              expected='{"step": 20, ...}', next_step="delete this line") from error  # fmt: skip
