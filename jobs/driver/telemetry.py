"""Prometheus metrics of workers and of the driver, published through Ray's metrics endpoint."""

import time
from collections import Counter as Counts
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ray.util.metrics import Counter, Gauge

from camworker.inference.stage_timer import StageTimer

# The busy share is averaged over at least this long; over less it would describe a single batch.
_BUSY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """The state of a run of shards.

    Attributes:
        done: Shards done since the start.
        failed: Attempts failed since the start; most of them are retried.
        lost: Shards given up since the start.
        waiting: Shards that are neither done nor running now.
        workers: Workers that have started and are alive now.
    """

    done: int
    failed: int
    lost: int
    waiting: int
    workers: int


class WorkerMetrics:
    """The metrics of one worker, published by calling `publish` after every batch.

    Args:
        recipe: The value of the recipe tag.
        stages: The worker's stage timer; what it has counted before is not published.
        on_gpu: Whether to publish the share of time in which the network ran.
    """

    def __init__(self, recipe: str, stages: StageTimer, *, on_gpu: bool) -> None:
        self._stages, self._published = stages, stages.spent
        self._images = _counter("images_total", "images that became rows", recipe, "status")
        self._seconds = _counter("stage_seconds_total", "seconds by stage, over its threads", recipe, "stage")
        self._bytes = _counter("read_bytes_total", "bytes of images read", recipe)
        self._queue = _gauge("queue_depth", "preprocessed images that wait for the network", recipe)
        self._busy = _gauge("gpu_busy_ratio", "share of time in which the network ran", recipe)
        self._on_gpu = on_gpu
        self._busy_since, self._network_seconds = time.monotonic(), self._published.seconds["network"]

    def publish(self, statuses: Iterable[str] = ()) -> None:
        """Publish what has changed since the last call.

        Args:
            statuses: The statuses of the rows that were finished since then.
        """
        for status, images in Counts(statuses).items():
            self._images.inc(images, {"status": status})
        spent = self._stages.spent
        change, self._published = spent - self._published, spent
        for stage, seconds in change.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})
        if change.read_bytes:
            self._bytes.inc(change.read_bytes)
        self._queue.set(self._stages.waiting)
        now, network_seconds = time.monotonic(), spent.seconds["network"]
        if self._on_gpu and now - self._busy_since >= _BUSY_SECONDS:
            busy = (network_seconds - self._network_seconds) / (now - self._busy_since)
            self._busy.set(min(1.0, busy))
            self._busy_since, self._network_seconds = now, network_seconds


class DriverMetrics:
    """The metrics of a driver; the counters of consecutive runs of shards add up.

    Args:
        recipe: The value of the recipe tag.
    """

    def __init__(self, recipe: str) -> None:
        self._shards = _counter("shards_total", "shards done and lost, attempts failed", recipe, "outcome")
        self._waiting = _gauge("shards_waiting", "shards that are neither done nor running", recipe)
        self._workers = _gauge("workers", "workers that have started", recipe)
        self._published = DriverStatus(0, 0, 0, 0, 0)

    def publish(self, status: DriverStatus) -> None:
        """Publish what has changed since the last call in this run of shards."""
        for outcome, change in (
            ("done", status.done - self._published.done),
            ("failed", status.failed - self._published.failed),
            ("lost", status.lost - self._published.lost),
        ):
            if change:
                self._shards.inc(change, {"outcome": outcome})
        self._waiting.set(status.waiting)
        self._workers.set(status.workers)
        self._published = status


def _counter(name: str, description: str, recipe: str, *tags: str) -> Counter:
    counter = Counter(f"camworker_{name}", description=description, tag_keys=("recipe", *tags))
    return counter.set_default_tags({"recipe": recipe})


def _gauge(name: str, description: str, recipe: str) -> Gauge:
    gauge = Gauge(f"camworker_{name}", description=description, tag_keys=("recipe",))
    return gauge.set_default_tags({"recipe": recipe})
