"""Where a worker's time goes: seconds by stage, bytes read, images that wait for the network."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar, get_args

Stage = Literal["fetch_decode", "network", "boxes", "commit"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class StageTimes:
    """What work took. seconds: by stage, summed over its threads, which work side by side.

    So the stages may add up to more than the time that passed, each to at most that times its threads.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    read_bytes: int = 0

    def __add__(self, other: Self) -> "StageTimes":
        seconds: dict[str, float] = {stage: self.seconds[stage] + other.seconds[stage] for stage in STAGES}
        return StageTimes(seconds, self.read_bytes + other.read_bytes)

    def __sub__(self, other: Self) -> "StageTimes":
        seconds: dict[str, float] = {stage: self.seconds[stage] - other.seconds[stage] for stage in STAGES}
        return StageTimes(seconds, self.read_bytes - other.read_bytes)


class StageTimer:
    """A worker's account, kept by all its threads; spent and waiting may be looked at at any time.

    waiting: images that are prepared and that the network has not taken yet.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._read_bytes = 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> StageTimes:
        """All so far; what is still being done counts when it is done."""
        with self._lock:
            return StageTimes(dict(self._seconds), self._read_bytes)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count the time inside, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._seconds[stage] += seconds

    def timed_each(self, stage: Stage, items: Iterator[Item]) -> Iterator[Item]:
        """The items, with the time counted that each takes to come."""
        while True:
            with self.timed(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def read(self, data: bytes) -> None:
        """Count the bytes of an image."""
        with self._lock:
            self._read_bytes += len(data)

    def prepared(self) -> None:
        """Count an image that waits for the network from here on."""
        with self._lock:
            self.waiting += 1

    def taken(self, images: int) -> None:
        """Count images that the network has been given."""
        with self._lock:
            self.waiting -= images

    def empty(self) -> None:
        """No image waits any more: those that did are not wanted."""
        with self._lock:
            self.waiting = 0
