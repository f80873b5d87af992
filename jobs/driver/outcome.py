"""The outcome of a run of shards."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from jobs.driver.retry_queue import Task
from jobs.driver.worker_process import RuntimeInfo


class HasImageCounts(Protocol):
    """What a driver keeps of a shard that is done."""

    @property
    def images(self) -> Mapping[str, int]:
        """Images of the shard by status."""
        ...


ResultT = TypeVar("ResultT", bound=HasImageCounts)


@dataclass
class Outcome(Generic[ResultT]):
    """The outcome of a run of shards.

    Attributes:
        done: The tasks that are done, with their results.
        images: Images of these tasks by status.
        lost: The tasks that could not be done, with the reason for their last failure.
        stopped: Why the run was stopped before its end; None if it was not.
        runtime_info: What a worker found out about its machine.
        images_per_second: Throughput of all workers after their first batches, if known.
        failed_attempts: Attempts that were counted against retry budgets.
        restarts: Workers that were started in place of others.
    """

    done: dict[Task, ResultT] = field(default_factory=dict)
    images: Counter[str] = field(default_factory=Counter)
    lost: dict[Task, str] = field(default_factory=dict)
    stopped: str | None = None
    runtime_info: RuntimeInfo = field(default_factory=RuntimeInfo)
    images_per_second: float | None = None
    failed_attempts: int = 0
    restarts: int = 0
