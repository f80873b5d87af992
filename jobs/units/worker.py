"""The worker process of `camworker units`."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.frame import Resize
from camworker.inference.localizer import Localizer
from camworker.inputs import ReadPolicy
from camworker.networks.package import load
from camworker.schemas import Precision
from camworker.storage.uris import Connections
from camworker.units.collect import collect_top_activations
from camworker.units.top_activations import CollectedActivations
from jobs.driver.worker_process import RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress


@dataclass(frozen=True, slots=True)
class UnitsSettings:
    """The settings that all workers of a run share.

    Attributes:
        fingerprint: Fingerprint of the network's weights.
        network: Name of the network, or None for the default.
        weights: Network package or weights file, or None for the network's own.
        output_stride: Pixels per cell of the feature map, or None for the network's own.
        precision: The precision in which the network runs.
        input_size: Side of the network's input in pixels.
        resize: How images are fitted into the input.
        batch_size: Number of images of a batch, or None for the device's default.
        units_U: The units, ascending.
        count: Number of images to keep for each unit.
    """

    fingerprint: str
    network: str | None
    weights: str | None
    output_stride: int | None
    precision: Precision
    input_size: int
    resize: Resize
    batch_size: int | None
    units_U: NDArray[np.int32]
    count: int

    def localizer(self) -> Localizer:
        """Create the Localizer of the workers.

        Raises:
            CommitError: The weights have changed since the run was planned.
        """
        return Localizer(
            load(
                self.network,
                self.weights,
                output_stride=self.output_stride,
                fingerprint=self.fingerprint,
            ),
            precision=self.precision,
            input_size=self.input_size,
            resize=self.resize,
            refine="none",
            batch_size=self.batch_size,
        )


class UnitsWorker:
    """Collects the top activations of shards, one after the other, in a process of its own.

    Args:
        settings: The same for all workers of a run.
        cores: Processor cores of this worker.
    """

    def __init__(self, settings: UnitsSettings, cores: int) -> None:
        import torch

        torch.set_num_threads(cores)
        self._cores = cores
        self._settings = settings
        self._localizer = settings.localizer()
        self._connections = Connections()
        self.progress = WorkerProgress()

    def runtime_info(self) -> RuntimeInfo:
        """Return the device and precision in use."""
        return {
            "device": str(self._localizer.device),
            "precision": str(self._localizer.dtype).removeprefix("torch."),
        }

    def run(self, items: pa.Table, policy: ReadPolicy, isolate: bool) -> CollectedActivations:
        """Collect the top activations of one shard.

        Args:
            items: The images of the shard, see `collect_top_activations`.
            policy: Which files may be read for the items.
            isolate: Decode images in a child process, so that a crashing decoder does not end the worker.
        """
        self.progress.running = Counter()
        collected = collect_top_activations(
            items,
            self._localizer,
            self._settings.units_U,
            self._settings.count,
            policy,
            self._connections,
            decoders=self._cores,
            on_batch=self.progress.count_batch,
            isolate=isolate,
        )
        self.progress.running = Counter()  # the driver counts the result itself
        return collected
