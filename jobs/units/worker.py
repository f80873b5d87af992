"""The Ray actor of units: a Localizer that finds what excites units in shard after shard of items."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from camworker.frame import Resize
from camworker.inference.localizer import Localizer
from camworker.inputs import ReadPolicy
from camworker.schemas import Precision
from camworker.units.collect import collect_top_activations
from camworker.units.top_activations import Excited
from jobs.driver.worker_progress import WorkerProgress
from jobs.localize.worker import load_planned


@dataclass(frozen=True, slots=True)
class UnitsSettings:
    """What every worker of a run is started with. units_U: which to look for; count: images of each."""

    fingerprint: str
    network: str
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
    """Made into a Ray actor by the driver; shards run in order, tally answers beside them."""

    def __init__(self, settings: UnitsSettings, cores: int) -> None:
        import torch

        torch.set_num_threads(cores)
        self._cores = cores
        self._settings = settings
        self._localizer = settings.localizer()
        self._tally = WorkerProgress()

    def about(self) -> dict[str, Any]:
        """What was resolved here."""
        return {
            "device": str(self._localizer.device),
            "precision": str(self._localizer.dtype).removeprefix("torch."),
        }

    def run(self, items: pa.Table, policy: ReadPolicy, careful: bool) -> Excited:
        """One shard's peaks; careful: so that an image that kills a decoder kills no worker."""
        self._tally.running = Counter()
        excited = collect_top_activations(
            items,
            self._localizer,
            self._settings.units_U,
            self._settings.count,
            policy,
            decoders=self._cores,
            on_batch=self._tally.add,
            careful=careful,
        )
        self._tally.running = Counter()  # from here on the driver counts it
        return excited

    @ray.method(concurrency_group="tally")
    def tally(self) -> WorkerProgress:
        """Rows finished so far, those of the running shard included."""
        return self._tally
