"""The training loop. An interrupted run that resumes computes the same bits as an uninterrupted one.

All random numbers are functions of (seed, step), so a checkpoint holds weights, averages, the optimiser's state and the
loader's position, and nothing else. Under torchrun every process runs this same code on its rows of each batch.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lightwam.config.checks import check_recipe
from lightwam.config.schema import Recipe
from lightwam.data.cache.base import Cache
from lightwam.data.loader import WindowLoader
from lightwam.engine.packed_step import PackedLoss
from lightwam.errors import CheckpointError, ConfigError, DatasetError
from lightwam.model.light_wam import LightWAM, dtype_of
from lightwam.policy import run_directory
from lightwam.policy.run_directory import Checkpoint, Weights
from lightwam.system.cpu import fast_matmuls
from lightwam.system.devices import check_compiler, oom_as_config_error, use_gpu
from lightwam.system.files import append_line
from lightwam.system.progress import Progress, Say
from lightwam.training import distributed, loggers, validation
from lightwam.training.batches import BatchEncoder, BatchStream, StepInput
from lightwam.training.caches import DatasetSource
from lightwam.training.checkpoint_writer import CheckpointWriter
from lightwam.training.dataset import open_training_data
from lightwam.training.distributed import Parallel, World
from lightwam.training.footprint import has_video, memory_advice, num_with_video
from lightwam.training.loggers import Logger, open_loggers
from lightwam.training.optimizer import Optimizer, ema_decay, learning_rate
from lightwam.training.run_log import truncate_log
from lightwam.training.start import Start, Statistics, load_start
from lightwam.training.validation import Validation
from lightwam.training.wan_backbone import load_backbone


def train(
    recipe: Recipe,
    dataset: Path | str | DatasetSource | None,
    run: Path | str,
    *,
    device: str = "auto",
    parallel: Parallel = "ddp",
    start_from: Path | None = None,
    statistics: Statistics = "kept",
    stop_after: int | None = None,
    say: Say = print,
) -> Path:
    """Train `recipe` on the LeRobot dataset `dataset` in the directory `run`, from its newest checkpoint; return `run`.

    `device` is "auto" (a GPU if there is one), "cpu" or "cuda"; `parallel` says how processes under torchrun share the
    work. A new run takes its first weights from the run `start_from`, if any, else the recipe's pretrained ones, else
    random ones. With `start_from` it keeps that run's `statistics` of state, action and latents ("kept") or measures
    its own ("new"). `stop_after` stops after that step and its checkpoint (0: before the first step).

    Raises CheckpointError when `run` holds another recipe, began with another dataset, start or names, or has a damaged
    checkpoint, or `start_from` does not fit; DatasetError when the data do not fit or the loss is not finite;
    ConfigError when memory runs out, or a logger is not installed or has no credentials.
    """
    check_recipe(recipe)
    run = Path(run)
    if parallel == "fsdp" and recipe.train.muon_learning_rate:
        step = "--parallel ddp, or --train.muon-learning-rate 0"
        raise ConfigError("parallel must be ddp with Muon, which needs whole matrices", got="fsdp", next_step=step)
    with distributed.process_group(device) as world:
        if world.is_main:
            loggers.check(recipe)
        with world.main_first():
            start = load_start(run, recipe, start_from, statistics)
            cache, batch_encoder = open_training_data(recipe, dataset, run, say, start)
        torch.manual_seed(recipe.train.seed)
        with oom_as_config_error(f"the start, on {world.device}", "a larger device, or more of them (--parallel fsdp)"):
            session = Session(recipe, run, cache, batch_encoder, world, parallel, start)
        del start  # the model has its weights now
        if session.step and world.is_main:
            done = f"done: all {session.step} steps are trained; a larger --train.steps goes on"
            say(done if session.step >= recipe.train.steps else f"resuming at step {session.step}")
        world.barrier()
        logged = truncate_log(run / "log.jsonl", session.step) if world.is_main else 0
        last = min(recipe.train.steps, recipe.train.steps if stop_after is None else stop_after)
        with (
            open_loggers(recipe, run, world.is_main, begun=session.step, logged=logged, say=say) as opened_loggers,
            session,
            Progress("train", last, session.step, "step", say, silent=not world.is_main) as progress,
        ):
            _loop(session, last, opened_loggers, progress)
        world.barrier()  # until the last checkpoint is written
        if world.is_main and (line := run_directory.best_line(run)):
            say(line)
    return run


class Session:
    """All that changes while training, opened at the run's newest checkpoint or, without one, at the beginning."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        cache: Cache,
        batch_encoder: BatchEncoder,
        world: World,
        parallel: Parallel = "ddp",
        start: Start | None = None,
    ) -> None:
        settings = recipe.train
        self.recipe, self.run, self.world = recipe, run, world
        self.dtype: torch.dtype = getattr(torch, settings.precision)
        self.step, self.seconds = 0, 0.0
        model = LightWAM(recipe.model)
        known = run_directory.steps(run)
        saved = run_directory.load(run, known[-1]) if world.broadcast(bool(known)) else None
        if saved is not None:
            run_directory.load_strict(model, run_directory.run_weights(run, saved, ema=False), run)
        elif start is not None:
            run_directory.load_strict(model, start.weights, start.run)
        elif recipe.weights:
            load_backbone(model.dit, recipe.weights)
        sharded = parallel == "fsdp" and world.size > 1  # shards are float32, and gathered in `dtype`
        use_gpu(world.device, self.dtype)
        self.model = model.place(world.device, torch.float32 if sharded else self.dtype)
        if settings.compile:
            check_compiler(world.device, self.dtype)
        loss = PackedLoss(self.model, settings.checkpointing, settings.compile)
        all_used = recipe.model.video_loss_weight > 0
        parts = self.model.dit.blocks if all_used else ()  # the action pass alone is not packed
        self.loss = distributed.parallelise(loss, world, parallel, self.dtype, all_used=all_used, parts=parts)
        self.optimizer = Optimizer({name: p for name, p in self.model.named_parameters() if p.requires_grad}, settings)
        self.trained = self.optimizer.masters
        self.ema: Weights = {name: p.detach().clone() for name, p in self.trained.items()} if settings.ema_decay else {}
        horizon, batch_size, shift = recipe.model.horizon, settings.batch_size, settings.shift_pixels
        rank, videos = world.process, has_video(settings, batch_size // world.process.size)
        loader = WindowLoader(cache, batch_encoder.codec, horizon, batch_size, settings.seed, shift, rank, videos)
        self.stream = BatchStream(loader, batch_encoder, settings, world)
        self.writer = CheckpointWriter(run, world)
        drawn = loader.sampling
        self.validates, self.validation = bool(drawn.held_out), None
        if self.validates and world.is_main:
            self.validation = Validation.open(recipe, run, cache, batch_encoder, drawn)
        if saved is not None:
            self._resume(saved)

    def _resume(self, saved: Checkpoint) -> None:
        """Load what the model, which has its weights already, does not hold."""
        if sorted(saved.training) != ["loader", "optimizer", "seconds"] or (saved.ema is None) != (not self.ema):
            what, got = "a checkpoint must have a training state to resume", ", ".join(sorted(saved.training))
            step = "train into another --run, with --start-from this one"
            raise CheckpointError(
                what, where=f"step {saved.step}", got=got or "only weights (an adopted run)", next_step=step
            )
        for ours, theirs in ((self.trained, saved.model), (self.ema, saved.ema or {})):
            for name, value in ours.items():
                value.data.copy_(distributed.sharded_like(theirs[name], value.data))
        self.optimizer.load_state_dict(saved.training["optimizer"])
        self.stream.load_state_dict(saved.training["loader"])
        self.step = saved.step
        self.seconds = saved.training["seconds"]

    def advance(self) -> dict[str, float]:
        """Make one optimiser step; return its losses, gradient norm and learning rate.

        The step is handed to the device as a whole before its losses are read, so that a GPU waits for nothing.
        """
        settings = self.recipe.train
        advice = memory_advice(settings, settings.micro_batch or settings.batch_size)
        with oom_as_config_error(f"the input of step {self.step}, on {self.world.device}", advice):
            given = self.stream.next(self.step)
        losses = self.world.mean(self._accumulate_gradients(given))
        norm = distributed.whole(self.optimizer.clip(settings.clip_norm))
        rate = learning_rate(self.step, settings)
        self.optimizer.step(rate / settings.learning_rate)
        if self.ema:
            decay = ema_decay(self.step + 1, settings.ema_decay)
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.trained.values()], 1 - decay)
        numbers = torch.cat((losses, norm.to(losses)[None])).tolist()
        row = dict(zip(("loss", "loss_video", "loss_action", "grad_norm"), numbers, strict=True))
        row["learning_rate"] = rate
        if not all(math.isfinite(number) for number in numbers):
            where, step = f"step {self.step}", "lower train.learning_rate, or check the data: `lightwam check dataset`"
            raise DatasetError("the loss and its gradient must be finite", where=where, got=row, next_step=step)
        self.step += 1
        return row

    def _accumulate_gradients(self, given: StepInput) -> Float[Tensor, " 3"]:
        """Add up the gradients of this process's rows, a micro batch at a time; return the mean losses."""
        batch, u, noise = given
        size, train, device = len(u), self.recipe.train, self.world.device
        micro = min(train.micro_batch or size, size)
        means = torch.zeros(3, device=u.device)
        running = f"step {self.step}, {micro} samples at a time on {device}"
        with oom_as_config_error(running, memory_advice(train, micro)), fast_matmuls(device, self.dtype):
            for start in range(0, size, micro):
                stop = min(start + micro, size)
                weight = (stop - start) / size
                with distributed.sync_on_last(self.loss, last=stop == size):
                    videos = slice(start, start + num_with_video(train, stop - start))
                    losses = self.loss(batch.rows(start, stop), u[videos], noise[videos])
                    (losses.total * weight).backward()
                if self.world.size == 1:
                    self.optimizer.collect()  # several processes add up theirs first, in the weights' precision
                means += weight * torch.stack([loss.detach().float() for loss in losses])
        return means

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint, gathered from all processes (each has to call it); write the frozen weights once.

        The main process measures the error on held-out episodes.
        """
        self.writer.wait()  # the frozen weights are written once, before the first
        main, run = self.world.is_main, self.run
        first = self.world.broadcast(not run_directory.steps(run))
        model = distributed.gather({name: p.detach() for name, p in self.trained.items()}, main)
        ema = distributed.gather(self.ema, main) if self.ema else None
        training = {
            "optimizer": distributed.gather(self.optimizer.state_dict(), main),
            "loader": self.stream.state_dict(),
            "seconds": self.seconds,
        }
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if first and not p.requires_grad}
        gathered = distributed.gather(frozen, main)
        frozen = {name: value.to(dtype_of(name, self.dtype)) for name, value in gathered.items()}
        if main and frozen:
            run_directory.write_tensors(run / run_directory.FROZEN, frozen)
        held_out = self.validation.measure(ema or model, self.world.device) if self.validation is not None else None
        return Checkpoint(self.step, model, ema, training, held_out)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stream.close()
        self.writer.close(raises=kind is None)


def _loop(session: Session, last: int, opened_loggers: list[Logger], progress: Progress) -> None:
    """Train to step `last`: advance, log, save."""
    settings, stream = session.recipe.train, session.stream
    since, waited, step_then, paused = time.perf_counter(), stream.wait_seconds, session.step, 0.0
    while session.step < last:
        session.writer.check()
        row = session.advance()
        saves = session.step % settings.save_every == 0 or session.step == last
        logs = session.step % settings.log_every == 0 or session.step == last or (saves and session.validates)
        now = time.perf_counter()
        if logs:
            working = now - since - paused
            session.seconds += now - since
            row["samples_per_second"] = settings.batch_size * (session.step - step_then) / working
            row["wait_share"] = (stream.wait_seconds - waited) / working
            row["seconds"] = session.seconds
            since, waited, step_then, paused = now, stream.wait_seconds, session.step, 0.0
        checkpoint = session.checkpoint() if saves else None
        if checkpoint is not None and checkpoint.held_out is not None:
            row |= validation.log_row(checkpoint.held_out)
            progress.tell(f"step {session.step}: {validation.describe(checkpoint.held_out)}")
        paused += time.perf_counter() - now
        if logs and session.world.is_main:
            append_line(session.run / "log.jsonl", json.dumps({"step": session.step, **row}))
        for logger in opened_loggers if logs else ():
            logger(session.step, row)
        progress.advance(f"loss {row['loss']:.4f}  action {row['loss_action']:.4f}  video {row['loss_video']:.4f}")
        if checkpoint is not None:
            session.writer.save(checkpoint)
