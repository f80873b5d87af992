"""Fine-tuning under Ray Train: what every worker does, and the board that tells the driver how far it is."""

import math
import os
import tempfile
import time
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
from ray.train.torch import get_device, prepare_model

from camworker.networks import package as weights
from camworker.training.data import training_batches, unpack
from camworker.training.trainer import Trainer, is_enough, score
from jobs.finetune.config import FinetuneConfig

STATE: Final = "state.pt"
_SECONDS_BETWEEN_TELLINGS: Final = 0.5
_LOADERS: Final = 8  # processes that read and decode, at most


class ProgressActor:
    """A Ray actor that holds the latest news: the driver reads it while Ray Train runs."""

    def __init__(self) -> None:
        self._news: dict[str, Any] = {}

    def write(self, news: dict[str, Any]) -> None:
        self._news = news

    def read(self) -> dict[str, Any]:
        return self._news


def train_worker(config: dict[str, Any]) -> None:
    """Train in one of the processes that Ray Train starts; report and checkpoint after each epoch."""
    course: FinetuneConfig = config["course"]
    cores: int = config["cores"]
    board: ray.actor.ActorHandle = config["board"]
    how, context = course.how, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    _be_repeatable(how.seed, cores)
    network = weights.build_for_training(
        course.network,
        course.classes,
        pooling=course.pooling,  # type: ignore[arg-type]
        backbone_weights=course.backbone_weights,
    )
    with tempfile.TemporaryDirectory() as scratch:
        size, processes = course.preprocessing.input_size, min(_LOADERS, cores)
        training, _ = _share(course.training, rank, world, even=True)
        held_back, held_rows = _share(course.held_back, rank, world, even=False)
        loaders = []
        for name, items in (("training", training), ("held-back", held_back)):
            os.mkdir(folder := os.path.join(scratch, name))
            loaders.append(
                training_batches(
                    unpack(items, folder, course.policy),
                    course.classes,
                    size,
                    how.batch_size,
                    training=name == "training",
                    seed=how.seed + rank,
                    processes=processes,
                )
            )
        (batches, order), (held_back_batches, _) = loaders
        trainer = Trainer(
            network,
            course.preprocessing,
            how,
            steps_per_epoch=len(order),
            device=get_device(),
            parallel=prepare_model if world > 1 else lambda module: module,
        )
        history = _restore(trainer)
        for epoch in range(len(history), how.epochs):
            if is_enough(history, course.patience):
                break
            order.epoch = epoch
            began = time.monotonic()
            teller = _Teller(board if rank == 0 else None, epoch, how.epochs, len(order), history)
            loss, failed = trainer.train(batches, epoch, teller)
            if not math.isfinite(loss):
                raise FloatingPointError("the loss is not finite: lower --lr-backbone and --lr-head")
            boxes = [course.boxes[row] for row in held_rows]
            sums = trainer.validate(held_back_batches, boxes).merged()
            history.append(
                {
                    "epoch": epoch + 1,
                    "loss": loss,
                    **sums.figures(),
                    "unreadable": failed + int(sums.failed),
                    "seconds": round(time.monotonic() - began, 2),
                }
            )
            _report(trainer, history, rank)
            teller(len(order) - 1, loss)


class _Teller:
    """Writes to the board after a step, but not more often than anybody would look."""

    def __init__(
        self, board: Any, epoch: int, epochs: int, steps: int, history: list[dict[str, Any]]
    ) -> None:
        self._board, self._epoch, self._epochs, self._steps = board, epoch, epochs, steps
        self._history, self._last = history, 0.0

    def __call__(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if self._board is None or (now - self._last < _SECONDS_BETWEEN_TELLINGS and step + 1 < self._steps):
            return
        self._last = now
        done = self._epoch * self._steps + step + 1
        self._board.write.remote(
            {"done": done, "total": self._epochs * self._steps, "loss": loss, "history": self._history}
        )


def _share(items: pa.Table, rank: int, world: int, *, even: bool) -> tuple[pa.Table, list[int]]:
    """This process's items and their rows; even: as many as every other's, some of them twice if need be."""
    rows = np.arange(items.num_rows)
    if even:
        rows = np.resize(rows, -(-len(rows) // world) * world)
    rows = rows[rank::world]
    return items.take(pa.array(rows)), rows.tolist()


def _restore(trainer: Trainer) -> list[dict[str, Any]]:
    """Go on from Ray Train's latest checkpoint, if it has one; returns the epochs that are done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        state = torch.load(os.path.join(folder, STATE), map_location="cpu", weights_only=True)
    trainer.restore(state)
    return state["history"]


def _report(trainer: Trainer, history: list[dict[str, Any]], rank: int) -> None:
    """Tell Ray Train of an epoch, with a checkpoint from the first process."""
    last = history[-1]
    metrics = {**last, "history": list(history), "score": score(last)}
    if rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({**trainer.state(), "history": history}, os.path.join(folder, STATE))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _be_repeatable(seed: int, cores: int) -> None:
    torch.set_num_threads(cores)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
