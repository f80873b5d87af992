"""How far a worker is: what it tells the driver beside its work. Loads nothing that takes time."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
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
