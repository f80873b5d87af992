"""The Ray actor of units: a Localizer that finds what excites units in shard after shard of items."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from camworker.frame import Resize
from camworker.inference.localizer import Localizer
from camworker.inputs import ReadPolicy
from camworker.networks.package import load_planned
from camworker.schemas import Precision
from camworker.storage.uris import Connections
from camworker.units.collect import collect_top_activations
from camworker.units.top_activations import Excited
from jobs.driver.worker_process import RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress


@dataclass(frozen=True, slots=True)
class UnitsSettings:
    """What every worker of a run is started with. units_U: which to look for; count: images of each."""

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
        """The Localizer asked for. Raises CommitError when its weights are no longer those planned with."""
        return Localizer(
            load_planned(self.network, self.weights, self.output_stride, self.fingerprint),
            precision=self.precision,
            input_size=self.input_size,
            resize=self.resize,
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

    def run(self, items: pa.Table, policy: ReadPolicy, isolate: bool) -> Excited:
        """One shard's peaks; isolate decodes in a child process: a bad image kills no worker."""
        self.progress.running = Counter()
        excited = collect_top_activations(
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
        return excited
