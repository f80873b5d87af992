"""The Ray actor: a Localizer that runs shards one after another, and says how far it is."""

import logging
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from camworker.errors import CommitError, Status
from camworker.frame import Resize, Views
from camworker.inference.compile import Compile
from camworker.inference.localizer import Localizer
from camworker.inference.shard import Done, run_shard
from camworker.inference.stage_timer import StageTimer
from camworker.inference.threads import ThreadBudget, divide_threads
from camworker.ledger.ledger import Ledger, Plan
from camworker.networks.package import NetworkPackage, load
from camworker.schemas import Precision
from camworker.storage.uris import open_store
from jobs import json_logs as logs
from jobs.driver.telemetry import WorkerMetrics
from jobs.driver.worker_progress import WorkerProgress
from jobs.localize.compile_cache import compile_if_worthwhile

_log = logs.LOG.getChild("worker")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every worker of a run is started with. verbose: log every image that fails."""

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
    compile: Compile = "auto"
    images: int = 0  # about how many a worker will see, for which compiling has to pay
    verbose: bool = False

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


def load_planned(
    network: str, weights: str | None, output_stride: int | None, fingerprint: str
) -> NetworkPackage:
    """The network that the driver planned with. Raises CommitError when its weights have changed since."""
    package = load(network, weights, output_stride=output_stride)
    if package.fingerprint != fingerprint:
        raise CommitError("the network's weights have changed since this run was planned")
    return package


def start(localizer: Localizer, settings: WorkerSettings, cores: int) -> tuple[ThreadBudget, str]:
    """Divide this process's cores, and compile the network if it is worth it; what came of that, in words."""
    import torch

    threads = divide_threads(cores, gpu=localizer.device.type == "cuda")
    torch.set_num_threads(threads.each)
    return threads, compile_if_worthwhile(localizer, settings.compile, settings.images, threads.streams)


class Worker:
    """Made into a Ray actor by the driver; shards run in order, tally answers beside them."""

    def __init__(self, settings: WorkerSettings, cores: int) -> None:
        logs.write_lines(logging.DEBUG if settings.verbose else logging.INFO)
        self._recipe = settings.recipe
        self._localizer = settings.localizer()
        self._threads, self._compilation = start(self._localizer, settings, cores)
        self._ledger = Ledger(open_store(settings.out), settings.recipe)
        self._plans: dict[int, Plan] = {}
        self._tally = WorkerProgress()
        self._stages = StageTimer()
        on_gpu = self._localizer.device.type == "cuda"
        self._metrics = WorkerMetrics(settings.recipe, self._stages, on_gpu=on_gpu)
        with logs.log_context(recipe=self._recipe):
            _log.info("worker started", extra={"cores": cores, **self.about()})

    def about(self) -> dict[str, Any]:
        """What was resolved here, for the parts' metadata and the run record."""
        return {
            "device": str(self._localizer.device),
            "precision": str(self._localizer.dtype).removeprefix("torch."),
            "compilation": self._compilation,
            "decoder": "torchvision (JPEG), pillow",
            "versions": versions(),
        }

    def run(self, generation: int, shard: int, careful: bool) -> Done:
        """Localize and commit one shard; careful: so that an image that kills a decoder kills no worker."""
        with logs.log_context(recipe=self._recipe, generation=generation, shard=shard):
            _log.info("shard started", extra={"careful": careful})
            try:
                done = self._run(generation, shard, careful)
            except Exception as error:
                _log.exception("shard failed", extra={"why": f"{type(error).__name__}: {error}"})
                raise
            finally:
                self._metrics.publish()
            facts = {"images": done.images, "seconds": round(done.seconds, 3), "bytes": done.part.bytes}
            spent = {"read_bytes": done.spent.read_bytes, "stages": rounded(done.spent.seconds)}
            _log.info("shard done" if done.seconds else "shard was done before", extra=facts | spent)
        return done

    def _run(self, generation: int, shard: int, careful: bool) -> Done:
        if generation not in self._plans:
            self._plans[generation] = self._ledger.read_plan(generation)
        self._tally.running = Counter()
        done = run_shard(
            self._ledger,
            self._plans[generation],
            shard,
            self._localizer,
            decoders=self._threads.decoders,
            streams=self._threads.streams,
            about=self.about(),
            on_image=self._tally.prepare,
            on_batch=self._count,
            stages=self._stages,
            careful=careful,
        )
        self._tally.running = Counter()  # from here on the driver counts it
        return done

    def _count(self, statuses: Sequence[Status]) -> None:
        self._tally.add(statuses)
        self._metrics.publish(statuses)

    @ray.method(concurrency_group="tally")
    def tally(self) -> WorkerProgress:
        """Rows finished so far, those of the running shard included."""
        return self._tally


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds by stage, to the millisecond."""
    return {stage: round(value, 3) for stage, value in seconds.items()}


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
