"""Measure how a worker spends its time: seconds per stage, bytes read, images that wait for the network."""

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
    """Time and bytes that work took.

    Attributes:
        seconds: Seconds by stage, summed over the threads of the stage. As threads overlap, a stage can
            take as many times the elapsed time as it has threads.
        read_bytes: Bytes of image files that were read.
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
    """Adds up the times of a worker's threads. Any thread may use it at any time.

    Attributes:
        waiting: Number of images that are preprocessed and that the network has not taken yet.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._read_bytes = 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> StageTimes:
        """The times so far, without work in progress."""
        with self._lock:
            return StageTimes(dict(self._seconds), self._read_bytes)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count the time of the block, also if it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._seconds[stage] += seconds

    def timed_each(self, stage: Stage, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items, and count the time that each takes to be produced."""
        while True:
            with self.timed(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def read(self, data: bytes) -> None:
        """Count the bytes of an image file."""
        with self._lock:
            self._read_bytes += len(data)

    def prepared(self) -> None:
        """Count an image that waits for the network from now on."""
        with self._lock:
            self.waiting += 1

    def taken(self, images: int) -> None:
        """Count images that the network has taken."""
        with self._lock:
            self.waiting -= images

    def empty(self) -> None:
        """Reset the number of waiting images: those that waited were discarded."""
        with self._lock:
            self.waiting = 0
