"""Following a run from its ledger alone: parts as they arrive, failures, speed, who is at work."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from camworker.dataset import count_statuses
from camworker.ledger.lease import LeaseObserver, LeaseRecord
from camworker.ledger.ledger import Ledger, Plan, recipes
from camworker.storage.store import Store

_THREADS: Final = 16
_ARRIVALS: Final = 20  # over so many the speed is told: what was long ago says little

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Progress:
    """An unfinished generation as it was seen. images: count by status; holder: the run that works on it.

    images_per_second: as parts arrived; None until a second one has.
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
        return self.images.total()

    @property
    def seconds_left(self) -> float | None:
        """At the speed seen."""
        rate = self.images_per_second
        return (self.planned - self.done) / rate if rate else None


class ProgressMonitor:
    """The unfinished generations of an output, looked at again and again.

    A look lists the parts of unfinished generations alone, and reads the statuses of parts that are new.
    """

    def __init__(self, store: Store, *, clock: Clock = time.monotonic, today: Clock = time.time) -> None:
        self._recipes = [_Recipe(Ledger(store, name), clock, today) for name in recipes(store)]

    def look(self) -> list[Progress] | None:
        """What is unfinished, by recipe and generation; None: nothing, and no run is at work. OSError.

        Empty while a run is at work that has not planned yet, or has completed what it planned.
        """
        seen = [recipe.look() for recipe in self._recipes]
        if not any(progress or recipe.holder for progress, recipe in zip(seen, self._recipes, strict=True)):
            return None
        return [each for progress in seen for each in progress]


class _Recipe:
    """What is unfinished of one recipe."""

    def __init__(self, ledger: Ledger, clock: Clock, today: Clock) -> None:
        self.holder: LeaseRecord | None = None
        self._ledger, self._clock, self._today = ledger, clock, today
        self._lease = LeaseObserver(ledger.store, ledger.recipe)
        self._known: set[int] = set()
        self._unfinished: list[_Generation] = []

    def look(self) -> list[Progress]:
        # Asked before the ledger: a run that ends its lease has written all that it had to.
        self.holder = self._lease.look(self._today())
        # Only a run that has nothing left to complete plans again.
        self._unfinished = [it for it in self._unfinished if not it.is_complete()] or self._find()
        return [generation.look(self.holder) for generation in self._unfinished]

    def _find(self) -> list["_Generation"]:
        new = [number for number in self._ledger.generations() if number not in self._known]
        self._known.update(new)
        found = [_Generation(self._ledger, self._ledger.read_plan(n), self._clock) for n in new]
        return [generation for generation in found if not generation.is_complete()]


class _Generation:
    """An unfinished generation."""

    def __init__(self, ledger: Ledger, plan: Plan, clock: Clock) -> None:
        self._ledger, self._plan, self._clock = ledger, plan, clock
        self._seen: set[str] = set()
        self._images = Counter[str]()
        self._looked = False
        self._arrivals = deque[tuple[float, int]](maxlen=_ARRIVALS)

    def is_complete(self) -> bool:
        return self._ledger.read_run(self._plan.generation) is not None

    def look(self, holder: LeaseRecord | None) -> Progress:
        parts = self._ledger.parts(self._plan.generation).values()
        if new := [key for key in parts if key not in self._seen]:
            self._images += _count(self._ledger, new)
            self._seen.update(new)
            # When those came that are there at first, nobody knows.
            if self._looked:
                self._arrivals.append((self._clock(), self._images.total()))
        self._looked = True
        return Progress(
            self._ledger.recipe,
            self._plan.generation,
            self._plan.items,
            self._plan.shards,
            len(self._seen),
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
    """Rows by status."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(lambda key: count_statuses(ledger, [key]), keys), Counter[str]())
