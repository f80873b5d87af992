"""Lost workers: the errors that report a loss, and whether a node or only the worker was lost."""

from enum import Enum
from typing import Final

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from jobs.driver.retry_queue import Task
from jobs.driver.worker_process import RayWorker
from jobs.ray_cluster import loss_reason

# Ray's memory monitor also kills workers, which it reports as OutOfMemoryError.
LOSS_ERRORS: Final = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)

# The cluster notices the loss of a node only some time after the workers on it have fallen silent.
_NODE_LOSS_DELAY_SECONDS: Final = 3.0
_UNREACHABLE_SECONDS: Final = 90.0


class LossCause(Enum):
    """What is known about why a worker was lost."""

    UNKNOWN = "unknown"
    NODE = "its node was lost"
    WORKER = "it died, or was killed"


class WorkerLoss:
    """A lost worker, for which it may not be clear yet whether its node was lost too.

    At first, Ray reports every worker of a lost node as unreachable (ActorUnavailableError). It reports a
    worker that died on a busy machine in the same way.

    Args:
        worker: The lost worker.
        node: The id of its node; None if the worker had not started.
        task: The task that it was running, if any.
        started_at: When the worker was started.
        error: The error that reported the loss.
        now: The time of the loss.

    Attributes:
        reason: Why the worker was lost, as Ray reports it.
    """

    def __init__(
        self,
        worker: RayWorker,
        node: str | None,
        task: Task | None,
        started_at: float,
        error: RayError,
        now: float,
    ) -> None:
        self.task, self.started_at, self.lost_at = task, started_at, now
        self.reason = loss_reason(error)
        self._worker, self._node = worker, node
        self._unreachable = isinstance(error, ActorUnavailableError)
        self._probe: ray.ObjectRef | None = None

    def cause(self, now: float, live_nodes: set[str]) -> LossCause:
        """Return the cause, given the ids of the nodes that are alive; call again while it is UNKNOWN."""
        if self._node is not None and self._node not in live_nodes:
            return LossCause.NODE
        if self._unreachable and now - self.lost_at < _UNREACHABLE_SECONDS:
            return self._probe_worker()
        return LossCause.WORKER if now - self.lost_at > _NODE_LOSS_DELAY_SECONDS else LossCause.UNKNOWN

    def _probe_worker(self) -> LossCause:
        """Call the worker: if it answers, only the connection was lost and its node is alive."""
        if self._probe is None:
            self._probe = self._worker.progress()
        elif ray.wait([self._probe], timeout=0)[0]:
            probe, self._probe = self._probe, None
            try:
                ray.get(probe)
            except ActorUnavailableError:
                return LossCause.UNKNOWN
            except LOSS_ERRORS as error:
                self.reason, self._unreachable = loss_reason(error), False
            else:
                return LossCause.WORKER
        return LossCause.UNKNOWN

    def end_worker(self) -> None:
        """End the process, which may be out of reach but still running and holding its cores."""
        self._worker.end()
