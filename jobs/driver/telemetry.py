"""Metrics for Prometheus, through Ray's own endpoint: of workers and of the driver, by recipe."""

import time
from collections import Counter as Counts
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ray.util.metrics import Counter, Gauge

from camworker.inference.stage_timer import StageTimer

# A share of time is told for so many seconds at least: over less it says what one batch did.
_BUSY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """How far a run of shards is. done, failed and lost: since its start; waiting, workers: now.

    failed: attempts that failed, most of which are repeated; lost: shards that are given up; waiting:
    shards that are neither done nor run; workers: those that have started.
    """

    done: int
    failed: int
    lost: int
    waiting: int
    workers: int


class WorkerMetrics:
    """What a worker counts, told to Ray whenever publish is called: after every batch is often enough.

    on_gpu: tell also in which share of the time the network ran. Counts go on from where they were.
    """

    def __init__(self, recipe: str, stages: StageTimer, *, on_gpu: bool) -> None:
        self._stages, self._told = stages, stages.spent
        self._images = _counter("images_total", "images that became rows", recipe, "status")
        self._seconds = _counter("stage_seconds_total", "seconds by stage, over its threads", recipe, "stage")
        self._bytes = _counter("read_bytes_total", "bytes read of images", recipe)
        self._queue = _gauge("queue_depth", "prepared images that wait for the network", recipe)
        self._busy = _gauge("gpu_busy_ratio", "share of time in which the network ran", recipe)
        self._on_gpu = on_gpu
        self._since, self._network = time.monotonic(), self._told.seconds["network"]

    def publish(self, statuses: Iterable[str] = ()) -> None:
        """Tell what has happened since the last call; statuses: of the rows that were finished."""
        for status, images in Counts(statuses).items():
            self._images.inc(images, {"status": status})
        spent = self._stages.spent
        news, self._told = spent - self._told, spent
        for stage, seconds in news.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})
        if news.read_bytes:
            self._bytes.inc(news.read_bytes)
        self._queue.set(self._stages.waiting)
        now, network = time.monotonic(), spent.seconds["network"]
        if self._on_gpu and now - self._since >= _BUSY_SECONDS:
            self._busy.set(min(1.0, (network - self._network) / (now - self._since)))
            self._since, self._network = now, network


class DriverMetrics:
    """What a driver counts in one run of shards; those of several, one after the other, add up."""

    def __init__(self, recipe: str) -> None:
        self._shards = _counter("shards_total", "shards done and lost, attempts failed", recipe, "outcome")
        self._waiting = _gauge("shards_waiting", "shards that are neither done nor run", recipe)
        self._workers = _gauge("workers", "workers that have started", recipe)
        self._told = DriverStatus(0, 0, 0, 0, 0)

    def publish(self, standing: DriverStatus) -> None:
        """Tell how far the run of shards is."""
        for outcome in ("done", "failed", "lost"):
            if news := getattr(standing, outcome) - getattr(self._told, outcome):
                self._shards.inc(news, {"outcome": outcome})
        self._waiting.set(standing.waiting)
        self._workers.set(standing.workers)
        self._told = standing


def _counter(name: str, description: str, recipe: str, *tags: str) -> Counter:
    counter = Counter(f"camworker_{name}", description=description, tag_keys=("recipe", *tags))
    return counter.set_default_tags({"recipe": recipe})


def _gauge(name: str, description: str, recipe: str) -> Gauge:
    gauge = Gauge(f"camworker_{name}", description=description, tag_keys=("recipe",))
    return gauge.set_default_tags({"recipe": recipe})
