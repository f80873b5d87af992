"""Follow the runs of an output from its ledger alone: new parts, failures, speed, the run that is at work."""

import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from camworker.ledger.lease import Clock, LeaseObserver, LeaseRecord
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Plan
from camworker.ledger.snapshot import count_statuses
from camworker.storage.store import Store

_THREADS: Final = 16
_ARRIVALS: Final = 20  # the speed is that of the last polls: older ones say little about it


@dataclass(frozen=True, slots=True)
class Progress:
    """An unfinished generation at the time of a poll.

    Attributes:
        recipe: Id of the recipe.
        generation: Number of the generation.
        planned: Number of planned images.
        shards: Number of planned shards.
        parts: Number of parts that are present.
        images: Number of rows in these parts by status.
        images_per_second: Speed at which parts arrived; None until a second poll has seen new parts.
        holder: The lease record of the run that is at work, or None.
    """

    recipe: str
    generation: int
    planned: int
    shards: int
    parts: int
    images: Counter[str]
    images_per_second: float | None
    holder: LeaseRecord | None

    @property
    def done(self) -> int:
        """The number of rows that are committed."""
        return self.images.total()

    @property
    def seconds_left(self) -> float | None:
        """The time to the end of the generation at this speed, or None if the speed is unknown."""
        rate = self.images_per_second
        return (self.planned - self.done) / rate if rate else None


class ProgressMonitor:
    """Polls the unfinished generations of an output.

    A poll lists the parts of unfinished generations only, and reads the statuses of new parts.

    Args:
        store: The store of the output.
        clock: Seconds on a clock that never goes back, for the speed.
        today: Seconds since the epoch, for leases.
    """

    def __init__(self, store: Store, *, clock: Clock = time.monotonic, today: Clock = time.time) -> None:
        self._recipes = [_RecipeMonitor(Ledger(store, name), clock, today) for name in Ledger.recipes(store)]

    def poll(self) -> list[Progress] | None:
        """Return the unfinished generations, by recipe and number.

        Returns:
            None if everything is complete and no run is at work. An empty list if a run is at work that has
            not planned yet, or has completed what it planned.

        Raises:
            OSError: The store cannot be read.
            CorruptedError: A part is not as it was written.
        """
        generations = [recipe.poll() for recipe in self._recipes]
        if not any(generations) and not any(recipe.holder for recipe in self._recipes):
            return None
        return [progress for of_recipe in generations for progress in of_recipe]


class _RecipeMonitor:
    """Polls the unfinished generations of one recipe.

    Attributes:
        holder: The lease record of the run that was at work at the last poll, or None.
    """

    def __init__(self, ledger: Ledger, clock: Clock, today: Clock) -> None:
        self.holder: LeaseRecord | None = None
        self._ledger, self._clock, self._today = ledger, clock, today
        self._lease = LeaseObserver(ledger.store, ledger.recipe)
        self._known: set[int] = set()
        self._unfinished: list[_GenerationMonitor] = []

    def poll(self) -> list[Progress]:
        # The lease is read before the ledger: a run writes everything before it releases its lease.
        self.holder = self._lease.poll(self._today())
        # A run plans again only when it has nothing left to complete.
        self._unfinished = [it for it in self._unfinished if not it.is_complete()] or self._new_generations()
        return [generation.poll(self.holder) for generation in self._unfinished]

    def _new_generations(self) -> list["_GenerationMonitor"]:
        numbers = [number for number in self._ledger.generations() if number not in self._known]
        self._known.update(numbers)
        new = [_GenerationMonitor(self._ledger, self._ledger.read_plan(n), self._clock) for n in numbers]
        return [generation for generation in new if not generation.is_complete()]


class _GenerationMonitor:
    """Polls one unfinished generation."""

    def __init__(self, ledger: Ledger, plan: Plan, clock: Clock) -> None:
        self._ledger, self._plan, self._clock = ledger, plan, clock
        self._counted: set[str] = set()
        self._images = Counter[str]()
        self._was_polled = False
        self._arrivals = deque[tuple[float, int]](maxlen=_ARRIVALS)

    def is_complete(self) -> bool:
        return self._ledger.is_complete(self._plan.generation)

    def poll(self, holder: LeaseRecord | None) -> Progress:
        parts = self._ledger.parts(self._plan.generation).values()
        if new := [key for key in parts if key not in self._counted]:
            self._images += _count(self._ledger, new)
            self._counted.update(new)
            # Parts that are present at the first poll have no known arrival time.
            if self._was_polled:
                self._arrivals.append((self._clock(), self._images.total()))
        self._was_polled = True
        return Progress(
            self._ledger.recipe,
            self._plan.generation,
            self._plan.items,
            self._plan.shards,
            len(self._counted),
            self._images.copy(),
            self._rate(),
            holder,
        )

    def _rate(self) -> float | None:
        if len(self._arrivals) < 2:
            return None
        since, before = self._arrivals[0]
        return (self._images.total() - before) / max(self._clock() - since, 1e-9)


def _count(ledger: Ledger, keys: Iterable[str]) -> Counter[str]:
    """Return the number of rows by status, reading several parts at a time."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(lambda key: count_statuses(ledger, [key]), keys), Counter[str]())
