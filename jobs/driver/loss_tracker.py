"""Lost workers and their effect on the shards that they ran."""

import time
from collections.abc import Callable
from typing import Final

from jobs.driver.retry_queue import RetryQueue, Task
from jobs.driver.worker_loss import LossCause, WorkerLoss
from jobs.ray_cluster import live_nodes

_MAX_START_LOSSES: Final = 5


class LossTracker:
    """Keeps lost workers until the causes of their losses are known.

    Args:
        queue: Gets the tasks of lost workers back.
        warn: Called with a task and a line about its worker.
        stop: Called with the reason if workers keep dying before they have started.
    """

    def __init__(
        self, queue: RetryQueue, warn: Callable[[Task, str], None], stop: Callable[[str], None]
    ) -> None:
        self._queue = queue
        self._warn = warn
        self._stop = stop
        self._unexplained: list[WorkerLoss] = []
        self._start_losses, self._last_start_loss_at = 0, 0.0

    def __len__(self) -> int:
        return len(self._unexplained)

    def add(self, loss: WorkerLoss) -> None:
        """Add a lost worker."""
        self._unexplained.append(loss)

    def record_start(self) -> None:
        """Record that a worker has started, which ends a series of losses at the start."""
        self._start_losses = 0

    def explain(self) -> None:
        """Requeue the tasks of workers whose loss is explained.

        A worker that died counts against the retry budget of its task; a lost node does not.
        """
        if not self._unexplained:
            return
        nodes, unexplained = live_nodes(), []
        for loss in self._unexplained:
            cause = loss.cause(time.monotonic(), nodes)
            if cause is LossCause.UNKNOWN:
                unexplained.append(loss)
                continue
            loss.end_worker()
            if loss.task is None:
                self.record_start_loss(loss, cause)
            elif cause is LossCause.NODE:
                self._warn(loss.task, f"a node was lost: shard {loss.task[1]} is run again elsewhere")
                self._queue.put_back([loss.task])
            else:
                self._warn(loss.task, f"shard {loss.task[1]} ended its worker: {loss.reason}")
                self._queue.record_loss(loss.task, loss.reason)
        self._unexplained = unexplained

    def record_start_loss(self, loss: WorkerLoss, cause: LossCause) -> None:
        """Record the loss of a worker that had not started; workers that die together are one incident."""
        if cause is LossCause.WORKER and loss.started_at >= self._last_start_loss_at:
            self._start_losses += 1
            self._last_start_loss_at = loss.lost_at
        if self._start_losses >= _MAX_START_LOSSES:
            self._stop(f"workers die before they have started: {loss.reason}")

    def end_workers(self) -> None:
        """End the processes of lost workers, which may be out of reach but still running."""
        for loss in self._unexplained:
            loss.end_worker()
