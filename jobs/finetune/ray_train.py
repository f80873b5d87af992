"""Run the training of `camworker finetune` with Ray Train."""

import os
import threading
from dataclasses import dataclass
from typing import Any, Final, cast

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from camworker.networks.state_dicts import State
from camworker.training.trainer import EpochRecord
from jobs.finetune.config import FinetuneConfig
from jobs.finetune.train_loop import STATE, ProgressActor, WorkerTask, train_worker
from jobs.progress import TrainingProgress
from jobs.ray_cluster import Workers, connected, plan_workers

_POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where to train.

    Attributes:
        address: The Ray cluster to join, or None to start one.
        workers: Number of workers, or None for one per GPU.
        gpus_per_worker: GPUs of a worker, or None for one if there are any.
        verbose: Show the log of Ray.
    """

    address: str | None
    workers: int | None
    gpus_per_worker: float | None
    verbose: bool


def run_training(
    config: FinetuneConfig, storage_path: str, cluster: ClusterOptions
) -> tuple[State, int, list[EpochRecord]]:
    """Run Ray Train, which continues from a checkpoint if there is one.

    Args:
        config: The configuration of the run.
        storage_path: Where checkpoints are stored.
        cluster: Where to train.

    Returns:
        The weights of the best epoch, the index of that epoch, and the results of all epochs.
    """
    with connected(cluster.address, verbose=cluster.verbose):
        workers = plan_workers(cluster.workers, cluster.gpus_per_worker)
        progress_actor = ray.remote(num_cpus=0)(ProgressActor).remote()
        result: list[Any] = []
        thread = threading.Thread(
            target=lambda: result.append(_fit(config, storage_path, workers, progress_actor)), daemon=True
        )
        with TrainingProgress() as progress:
            thread.start()
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                progress.update(ray.get(progress_actor.read.remote()))
        if isinstance(result[0], BaseException):
            raise result[0]
        checkpoint = result[0].get_best_checkpoint("score", "max")
        with checkpoint.as_directory() as folder:
            state = torch.load(os.path.join(folder, STATE), map_location="cpu", weights_only=True)
        history = cast(list[EpochRecord], result[0].metrics["history"])
        return state["network"], len(state["history"]) - 1, history


def _fit(config: FinetuneConfig, storage_path: str, workers: Workers, progress: Any) -> Any:
    """Return the result of TorchTrainer.fit, or the exception that ended it."""
    resources = {"CPU": workers.cores, **({"GPU": workers.gpus} if workers.gpus else {})}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": WorkerTask(config, workers.cores, progress)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=bool(workers.gpus), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            storage_path=storage_path,
            name="run",
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="score", checkpoint_score_order="max"
            ),
        ),
    )
    try:
        return trainer.fit()
    except Exception as error:  # the main thread raises it again
        return error
