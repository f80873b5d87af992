"""Simulated workers, many per actor, which simulate.py uses in place of the workers of localize."""

import asyncio
import hashlib
import os
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import ray

from camworker.inference.stage_timer import StageTimes
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Part, Plan
from jobs.driver.worker_process import RayWorker, RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress


@dataclass(frozen=True)
class Settings:
    """The settings of a host.

    Attributes:
        ledger: The ledger of the recipe.
        plan: The plan, or None if the workers commit nothing.
        seconds: Mean duration of a shard.
        images: Number of images per shard.
    """

    ledger: Ledger
    plan: Plan | None
    seconds: float
    images: int


@dataclass(frozen=True, slots=True)
class MadeUp:
    """A ShardResult of a shard that was not run; importing the real class would load torch."""

    part: Part
    seconds: float
    stage_times: StageTimes = field(default_factory=StageTimes)

    @property
    def images(self) -> dict[str, int]:
        return self.part.images


@dataclass
class _Worker:
    """The state of one worker, which runs one shard at a time, in order."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    progress: WorkerProgress = field(default_factory=WorkerProgress)


class Host:
    """An asynchronous Ray actor that stands for many workers; each call names the number of a worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: defaultdict[int, _Worker] = defaultdict(_Worker)
        self._localizer = _without_network() if settings.plan else None

    async def is_up(self) -> bool:
        return True

    async def introduce(self, number: int) -> tuple[RuntimeInfo, str]:
        return {"device": "none"}, ray.get_runtime_context().get_node_id()

    async def run(self, number: int, generation: int, shard: int, isolate: bool) -> Any:
        """Sleep as long as the network would take, then do the rest of the work of a shard."""
        worker = self._workers[number]
        async with worker.turn:
            await asyncio.sleep(self._settings.seconds * random.uniform(0.8, 1.2))
            if self._localizer is None:
                worker.progress.count_batch(["ok"] * 64)
                return self._make_up(generation, shard)
            return await asyncio.to_thread(self._commit, worker.progress, shard)

    async def progress(self, number: int) -> WorkerProgress:
        return self._workers[number].progress

    async def die(self) -> None:
        os._exit(1)

    def _make_up(self, generation: int, shard: int) -> MadeUp:
        sha256 = hashlib.sha256(str(shard).encode()).hexdigest()
        key = self._settings.ledger.layout.part_key(generation, shard)
        return MadeUp(Part(shard, key, 4096, 2_000_000, sha256, {"ok": 4095, "decode_error": 1}), 1.0)

    def _commit(self, progress: WorkerProgress, shard: int) -> Any:
        # Decoding is never isolated: the child processes after a lost host would all run on this machine.
        from camworker.inference.shard import run_shard

        progress.running = Counter()
        done = run_shard(
            self._settings.ledger,
            self._settings.plan,
            shard,
            self._localizer,
            decode_threads=1,
            runtime_info={},
            on_image=progress.count_image,
            on_batch=progress.count_batch,
        )
        progress.running = Counter()
        return done


class LogicalWorker(RayWorker):
    """One worker of a host, as the driver sees it.

    Attributes:
        made_at: When the driver started it.
        first_at: When it got its first shard; 0 before.
    """

    def __init__(self, host: Any, number: int) -> None:
        self._host, self._number = host, number
        self.made_at, self.first_at = time.monotonic(), 0.0

    def introduce(self) -> ray.ObjectRef:
        return self._host.introduce.remote(self._number)

    def run(self, *arguments: Any) -> ray.ObjectRef:
        self.first_at = self.first_at or time.monotonic()
        return self._host.run.remote(self._number, *arguments)

    def progress(self) -> ray.ObjectRef:
        return self._host.progress.remote(self._number)

    def end(self) -> None:
        """Do nothing: the worker died with its host, or the run is over."""


def rss_mb() -> float:
    """Return the resident memory of this process, in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _without_network() -> Any:
    """Return a Localizer that ran the network once, on noise, and gives this result for every image."""
    import numpy as np
    import torch

    from camworker.frame import Frame
    from camworker.images.decode import PreprocessedImage
    from camworker.inference.cam_network import Maps, ScoredMaps
    from camworker.inference.localizer import Localizer

    torch.set_num_threads(1)
    noise_CHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 224, 224), np.uint8))
    localizer = Localizer.load(preset="paper", device="cpu", precision="float32")
    seen = localizer.forward([PreprocessedImage(noise_CHW, Frame(224, 224, 224))], [()])
    assert seen is not None

    def forward(batch: list[Any], labels: list[Any]) -> Maps:
        names = ("labels_M", "scores_M", "maps_Mhw")
        best = [np.concatenate([getattr(seen.best, name)] * len(batch)) for name in names]
        return Maps(ScoredMaps(*best), seen.targets, np.zeros(len(batch), np.int64))

    localizer.forward = forward  # type: ignore[method-assign]
    return localizer
