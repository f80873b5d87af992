"""The Ray actor: a Localizer that runs shards one after another, and says how far it is."""

import logging
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from camworker.errors import CommitError, Status
from camworker.frame import Resize, Views
from camworker.inference.compile import Compile
from camworker.inference.localizer import Localizer
from camworker.inference.prefetch import ThreadBudget, divide_threads
from camworker.inference.shard import ShardResult, run_shard
from camworker.inference.stage_timer import StageTimer
from camworker.ledger.ledger import Ledger, Plan
from camworker.networks.package import NetworkPackage, load
from camworker.schemas import Precision
from camworker.storage.uris import Connections, open_store
from jobs.driver.json_logs import LOG, log_context, write_json_lines
from jobs.driver.telemetry import WorkerMetrics
from jobs.driver.worker_process import RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress
from jobs.localize.compile_cache import compile_if_worthwhile

_log: Final = LOG.getChild("worker")


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
    torch.set_num_threads(threads.intra_op_threads)
    return threads, compile_if_worthwhile(
        localizer, settings.compile, settings.images, threads.inference_streams
    )


class LocalizeWorker:
    """Localizes and commits shards, one after the other, in a process of its own.

    Args:
        settings: The same for all workers of a run.
        cores: Processor cores of this worker.
    """

    def __init__(self, settings: WorkerSettings, cores: int) -> None:
        write_json_lines(logging.DEBUG if settings.verbose else logging.INFO)
        self._recipe = settings.recipe
        self._localizer = settings.localizer()
        self._threads, self._compilation = start(self._localizer, settings, cores)
        self._connections = Connections()
        self._ledger = Ledger(open_store(settings.out, self._connections), settings.recipe)
        self._plans: dict[int, Plan] = {}
        self.progress = WorkerProgress()
        self._stages = StageTimer()
        on_gpu = self._localizer.device.type == "cuda"
        self._metrics = WorkerMetrics(settings.recipe, self._stages, on_gpu=on_gpu)
        with log_context(recipe=self._recipe):
            _log.info("worker started", extra={"cores": cores, **self.runtime_info()})

    def runtime_info(self) -> RuntimeInfo:
        """Return the device, precision and versions in use, for the metadata of parts and run records."""
        return {
            "device": str(self._localizer.device),
            "precision": str(self._localizer.dtype).removeprefix("torch."),
            "compilation": self._compilation,
            "decoder": "torchvision (JPEG), pillow",
            "versions": versions(),
        }

    def run(self, generation: int, shard: int, isolate: bool) -> ShardResult:
        """Localize and commit one shard.

        Args:
            generation: The generation of the shard.
            shard: Its number.
            isolate: Whether to decode in processes of their own, so that an image that crashes its decoder
                does not end this process.
        """
        with log_context(recipe=self._recipe, generation=generation, shard=shard):
            _log.info("shard started", extra={"isolate": isolate})
            try:
                done = self._run(generation, shard, isolate)
            except Exception as error:
                _log.exception("shard failed", extra={"why": f"{type(error).__name__}: {error}"})
                raise
            finally:
                self._metrics.publish()
            facts = {"images": done.images, "seconds": round(done.seconds, 3), "bytes": done.part.bytes}
            spent = {"read_bytes": done.stage_times.read_bytes, "stages": rounded(done.stage_times.seconds)}
            _log.info("shard done" if done.seconds else "shard was done before", extra=facts | spent)
        return done

    def _run(self, generation: int, shard: int, isolate: bool) -> ShardResult:
        if generation not in self._plans:
            self._plans[generation] = self._ledger.read_plan(generation)
        self.progress.running = Counter()
        done = run_shard(
            self._ledger,
            self._plans[generation],
            shard,
            self._localizer,
            self._connections,
            decode_threads=self._threads.decode_threads,
            inference_streams=self._threads.inference_streams,
            runtime_info=self.runtime_info(),
            on_image=self.progress.count_image,
            on_batch=self._count,
            stage_timer=self._stages,
            isolate=isolate,
        )
        self.progress.running = Counter()  # the driver counts the result itself
        return done

    def _count(self, statuses: Sequence[Status]) -> None:
        self.progress.count_batch(statuses)
        self._metrics.publish(statuses)


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
