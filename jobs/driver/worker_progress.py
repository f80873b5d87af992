"""How far a worker is: what it tells the driver beside its work. Loads nothing that takes time."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class WorkerProgress:
    """Rows that a worker has finished: of the shard it runs by status, of all its shards in time.

    prepared counts images that were read and decoded: it tells a slow worker from one that hangs. Times
    are wall-clock seconds, of the ends of its first batch and of its last.
    """

    running: Counter[str] = field(default_factory=Counter)
    images: int = 0
    first_batch: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    prepared: int = 0

    def prepare(self) -> None:
        """Count an image that was read and decoded."""
        self.prepared += 1

    def add(self, statuses: Sequence[str]) -> None:
        """Count a batch's rows."""
        self.running.update(statuses)
        self.images += len(statuses)
        self.last_at = time.time()
        if not self.first_batch:
            self.first_batch, self.first_at = len(statuses), self.last_at


def batch_seconds(tally: WorkerProgress) -> float:
    """What a batch takes at a worker's images/s; 0 where that is not known yet."""
    if tally.images <= tally.first_batch:
        return 0.0
    rate = (tally.images - tally.first_batch) / max(tally.last_at - tally.first_at, 1e-9)
    return tally.first_batch / rate


def steady_rate(tallies: list[WorkerProgress]) -> float | None:
    """Images per second after each worker's first batch; None where no worker had a second one."""
    steady = [tally for tally in tallies if tally.last_at > tally.first_at > 0]
    if not steady:
        return None
    images = sum(tally.images - tally.first_batch for tally in steady)
    return images / (max(tally.last_at for tally in steady) - min(tally.first_at for tally in steady))
