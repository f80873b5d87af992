"""The progress that a worker reports to the driver while it runs a shard."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class WorkerProgress:
    """Counts of one worker.

    Attributes:
        running: Rows of the running shard by status.
        images: Rows of all shards.
        first_batch: Rows of the first batch.
        first_batch_at: When the first batch ended, in seconds since the epoch.
        last_batch_at: When the last batch ended, in seconds since the epoch.
        preprocessed: Images that were read and decoded; tells a slow worker from one that hangs.
    """

    running: Counter[str] = field(default_factory=Counter)
    images: int = 0
    first_batch: int = 0
    first_batch_at: float = 0.0
    last_batch_at: float = 0.0
    preprocessed: int = 0

    def count_image(self) -> None:
        """Count an image that was read and decoded."""
        self.preprocessed += 1

    def count_batch(self, statuses: Sequence[str]) -> None:
        """Count the rows of a finished batch."""
        self.running.update(statuses)
        self.images += len(statuses)
        self.last_batch_at = time.time()
        if not self.first_batch:
            self.first_batch, self.first_batch_at = len(statuses), self.last_batch_at


def batch_seconds(progress: WorkerProgress) -> float:
    """Return how long a batch takes at the throughput of a worker, or 0 while that is not known."""
    if progress.images <= progress.first_batch:
        return 0.0
    seconds = max(progress.last_batch_at - progress.first_batch_at, 1e-9)
    return progress.first_batch * seconds / (progress.images - progress.first_batch)


def steady_state_throughput(workers: Sequence[WorkerProgress]) -> float | None:
    """Return the images per second of all workers after the first batch of each.

    The first batch is left out because it pays for one-time initialisation. None if no worker has finished a
    second batch.
    """
    steady = [worker for worker in workers if worker.last_batch_at > worker.first_batch_at > 0]
    if not steady:
        return None
    images = sum(worker.images - worker.first_batch for worker in steady)
    start, end = (
        min(worker.first_batch_at for worker in steady),
        max(worker.last_batch_at for worker in steady),
    )
    return images / (end - start)
