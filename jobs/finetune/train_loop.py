"""The training loop of each Ray Train worker, and the actor through which it reports progress."""

import math
import os
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
from ray.train.torch import get_device, prepare_model

from camworker.networks.package import build_for_training
from camworker.training.data import training_batches, unpack
from camworker.training.trainer import EpochRecord, Trainer, score, should_stop
from jobs.finetune.config import FinetuneConfig
from jobs.progress import TrainingStatus

STATE: Final = "state.pt"
_SECONDS_BETWEEN_REPORTS: Final = 0.5
_LOADERS: Final = 8  # maximum number of processes that read and decode images


class ProgressActor:
    """A Ray actor that holds the latest status; the driver polls it while Ray Train runs."""

    def __init__(self) -> None:
        self._status: TrainingStatus | None = None

    def write(self, status: TrainingStatus) -> None:
        """Replace the status."""
        self._status = status

    def read(self) -> TrainingStatus | None:
        """Return the latest status, or None before the first step."""
        return self._status


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """The argument of `train_worker`.

    Attributes:
        config: The configuration of the run.
        cores: Number of CPU cores of the worker.
        progress: Handle of the `ProgressActor`.
    """

    config: FinetuneConfig
    cores: int
    progress: Any


def train_worker(train_loop_config: dict[str, WorkerTask]) -> None:
    """Train in one of the processes that Ray Train starts, and save a checkpoint after each epoch."""
    task = train_loop_config["task"]
    config, hyperparameters = task.config, task.config.hyperparameters
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    _make_deterministic(hyperparameters.seed, task.cores)
    network = build_for_training(
        config.network,
        config.classes,
        pooling=config.pooling,
        backbone_weights=config.initial_weights,
    )
    with tempfile.TemporaryDirectory() as scratch:
        size, processes = config.preprocessing.input_size, min(_LOADERS, task.cores)
        training, _ = _shard(config.training, rank, world, even=True)
        held_back, held_rows = _shard(config.held_back, rank, world, even=False)
        loaders = []
        for name, items in (("training", training), ("held-back", held_back)):
            os.mkdir(folder := os.path.join(scratch, name))
            loaders.append(
                training_batches(
                    unpack(items, folder, config.policy),
                    config.classes,
                    size,
                    hyperparameters.batch_size,
                    training=name == "training",
                    seed=hyperparameters.seed + rank,
                    processes=processes,
                )
            )
        (batches, sampler), (held_back_batches, _) = loaders
        trainer = Trainer(
            network,
            config.preprocessing,
            hyperparameters,
            steps_per_epoch=len(sampler),
            device=get_device(),
            parallel=prepare_model if world > 1 else lambda module: module,
        )
        history = _restore(trainer)
        boxes = [config.boxes[row] for row in held_rows]
        for epoch in range(len(history), hyperparameters.epochs):
            if should_stop(history, config.patience):
                break
            sampler.epoch = epoch
            started = time.monotonic()
            reporter = _Reporter(
                task.progress if rank == 0 else None, epoch, hyperparameters.epochs, len(sampler), history
            )
            loss, failed = trainer.train(batches, epoch, reporter)
            if not math.isfinite(loss):
                raise FloatingPointError("the loss is not finite: lower --lr-backbone and --lr-head")
            validation = trainer.validate(held_back_batches, boxes).merged()
            history.append(
                {
                    "epoch": epoch + 1,
                    "loss": loss,
                    "validation_loss": validation.mean_loss,
                    "validation_accuracy": validation.accuracy,
                    "gt_known_localization_accuracy": validation.gt_known_localization_accuracy,
                    "unreadable": failed + int(validation.failed),
                    "seconds": round(time.monotonic() - started, 2),
                }
            )
            _save_checkpoint(trainer, history, rank)
            reporter(len(sampler) - 1, loss)


class _Reporter:
    """Sends the status to the progress actor after a step, but not more often than the driver polls."""

    def __init__(
        self, progress: Any, epoch: int, epochs: int, steps: int, history: list[EpochRecord]
    ) -> None:
        self._progress, self._epoch, self._epochs, self._steps = progress, epoch, epochs, steps
        self._history, self._last = history, 0.0

    def __call__(self, step: int, loss: float) -> None:
        now = time.monotonic()
        is_last = step + 1 >= self._steps
        if self._progress is None or (now - self._last < _SECONDS_BETWEEN_REPORTS and not is_last):
            return
        self._last = now
        done = self._epoch * self._steps + step + 1
        status = TrainingStatus(done=done, total=self._epochs * self._steps, loss=loss, history=self._history)
        self._progress.write.remote(status)


def _shard(items: pa.Table, rank: int, world: int, *, even: bool) -> tuple[pa.Table, list[int]]:
    """Return the items of one process and their rows.

    With `even`, every process gets the same number of items, and some items occur twice if necessary.
    """
    rows = np.arange(items.num_rows)
    if even:
        rows = np.resize(rows, -(-len(rows) // world) * world)
    rows = rows[rank::world]
    return items.take(rows), rows.tolist()


def _restore(trainer: Trainer) -> list[EpochRecord]:
    """Continue from Ray Train's latest checkpoint, if there is one, and return the finished epochs."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        state = torch.load(os.path.join(folder, STATE), map_location="cpu", weights_only=True)
    trainer.restore(state)
    return cast(list[EpochRecord], state["history"])


def _save_checkpoint(trainer: Trainer, history: list[EpochRecord], rank: int) -> None:
    """Report an epoch to Ray Train; the first process adds a checkpoint."""
    last = history[-1]
    metrics = {**last, "history": list(history), "score": score(last)}
    if rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({**trainer.state(), "history": history}, os.path.join(folder, STATE))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _make_deterministic(seed: int, cores: int) -> None:
    torch.set_num_threads(cores)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
