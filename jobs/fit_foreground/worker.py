"""The worker process of `camworker fit-foreground`."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from camworker.inference.prefetch import divide_threads
from camworker.inputs import ReadPolicy
from camworker.networks.package import load
from camworker.storage.uris import Connections
from camworker.training.foreground_sums import CollectedForeground, ForegroundCollector
from jobs.driver.worker_process import RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress


@dataclass(frozen=True, slots=True)
class FitSettings:
    """The settings that all workers of a run share.

    Attributes:
        fingerprint: Fingerprint of the network's weights.
        network: Name of the network, or None for the default.
        weights: Network package or weights file, or None for the network's own.
        batch_size: Number of images of a batch, or None for the device's default.
    """

    fingerprint: str
    network: str | None
    weights: str | None
    batch_size: int | None


class FitWorker:
    """Adds up the sums of shards, one after the other, in a process of its own.

    Args:
        settings: The same for all workers of a run.
        cores: Processor cores of this worker.

    Raises:
        CommitError: The weights have changed since the run was planned.
    """

    def __init__(self, settings: FitSettings, cores: int) -> None:
        import torch

        # One thread for each batch, and several batches at a time: the network rounds differently with other
        # numbers of threads, and the head must not depend on the number of cores.
        torch.set_num_threads(1)
        package = load(settings.network, settings.weights, fingerprint=settings.fingerprint)
        self._collector = ForegroundCollector(package, batch_size=settings.batch_size)
        self._threads = divide_threads(cores, gpu=self._collector.localizer.device.type == "cuda")
        self._connections = Connections()
        self.progress = WorkerProgress()

    def runtime_info(self) -> RuntimeInfo:
        """Return the device and precision in use."""
        return {"device": str(self._collector.localizer.device), "precision": "float32"}

    def run(
        self, shard: int, items: pa.Table, policy: ReadPolicy, isolate: bool
    ) -> tuple[int, CollectedForeground]:
        """Add up the sums of one shard.

        Args:
            shard: Number of the shard, which is returned with the result.
            items: The images of the shard, see `ForegroundCollector.collect`.
            policy: Which files may be read for the items.
            isolate: Decode images in a child process, so that a crashing decoder does not end the worker.
        """
        self.progress.running = Counter()
        collected = self._collector.collect(
            items,
            policy,
            self._connections,
            decoders=self._threads.decode_threads,
            streams=self._threads.inference_streams,
            on_batch=self.progress.count_batch,
            isolate=isolate,
        )
        self.progress.running = Counter()  # the driver counts the result itself
        return shard, collected
