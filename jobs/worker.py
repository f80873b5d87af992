"""The Ray actor: a Localizer that runs shards one after another, and says how far it is."""

import platform
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray

from camworker.errors import CommitError
from camworker.frame import Resize, Views
from camworker.ledger import Ledger, Plan
from camworker.localizer import Localizer, Precision
from camworker.shard import Done, run_shard
from camworker.store import open_store
from camworker.weights import Package, load
from jobs.tally import Tally


@dataclass(frozen=True, slots=True)
class Settings:
    """What every worker of a run is started with."""

    out: str
    recipe: str
    fingerprint: str
    network: str
    weights: str | None
    precision: Precision
    top_k: int
    box_rule: str
    input_size: int | None
    resize: Resize
    views: Views
    output_stride: int | None
    batch_size: int | None

    def localizer(self) -> Localizer:
        """The Localizer asked for. Raises CommitError when its weights are no longer the recipe's."""
        package = load_planned(self.network, self.weights, self.output_stride, self.fingerprint)
        return Localizer(
            package,
            precision=self.precision,
            top_k=self.top_k,
            box_rule=self.box_rule,
            input_size=self.input_size,
            resize=self.resize,
            views=self.views,
            batch_size=self.batch_size,
        )


def load_planned(network: str, weights: str | None, output_stride: int | None, fingerprint: str) -> Package:
    """The network that the driver planned with. Raises CommitError when its weights have changed since."""
    package = load(network, weights, output_stride=output_stride)
    if package.fingerprint != fingerprint:
        raise CommitError("the network's weights have changed since this run was planned")
    return package


class Worker:
    """Made into a Ray actor by the driver; shards run in order, tally answers beside them."""

    def __init__(self, settings: Settings, cores: int) -> None:
        import torch

        torch.set_num_threads(cores)
        self._cores = cores
        self._localizer = settings.localizer()
        self._ledger = Ledger(open_store(settings.out), settings.recipe)
        self._plans: dict[int, Plan] = {}
        self._tally = Tally()

    def about(self) -> dict[str, Any]:
        """What was resolved here, for the parts' metadata and the run record."""
        return {
            "device": str(self._localizer.device),
            "precision": str(self._localizer.dtype).removeprefix("torch."),
            "compilation": "off",
            "decoder": "torchvision (JPEG), pillow",
            "versions": versions(),
        }

    def run(self, generation: int, shard: int, careful: bool) -> Done:
        """Localize and commit one shard; careful: so that an image that kills a decoder kills no worker."""
        if generation not in self._plans:
            self._plans[generation] = self._ledger.read_plan(generation)
        self._tally.running = Counter()
        done = run_shard(
            self._ledger,
            self._plans[generation],
            shard,
            self._localizer,
            decoders=self._cores,
            about=self.about(),
            on_image=self._tally.prepare,
            on_batch=lambda rows: self._tally.add([row.status for row in rows]),
            careful=careful,
        )
        self._tally.running = Counter()  # from here on the driver counts it
        return done

    @ray.method(concurrency_group="tally")
    def tally(self) -> Tally:
        """Rows finished so far, those of the running shard included."""
        return self._tally


def versions() -> dict[str, str]:
    """Versions of what decides a row's bytes."""
    import numpy
    import PIL
    import pyarrow
    import timm
    import torch
    import torchvision

    import camworker

    modules = (camworker, torch, torchvision, timm, numpy, pyarrow)
    return {
        **{module.__name__: str(module.__version__) for module in modules},
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
