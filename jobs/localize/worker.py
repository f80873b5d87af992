"""The worker of localize: a Localizer that runs shards one after another."""

import logging
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from camworker.errors import Status
from camworker.inference.compile import Compile
from camworker.inference.localizer import Localizer
from camworker.inference.prefetch import ThreadBudget, divide_threads
from camworker.inference.shard import ShardResult, run_shard
from camworker.inference.stage_timer import StageTimer
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.ledger.records import Plan
from camworker.storage.uris import Connections, open_store
from jobs.driver.json_logs import LOG, log_context, write_json_lines
from jobs.driver.telemetry import WorkerMetrics
from jobs.driver.worker_process import RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress
from jobs.localize.compile_cache import compile_if_worthwhile

_log: Final = LOG.getChild("worker")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The settings of every worker of a run.

    Attributes:
        out: The output.
        recipe: The settings that decide the rows.
        network: The name of the network or its package; None for the default, or that of the weights.
        weights: Where its weights are; None for the package's own.
        batch_size: Images per batch; None for the default.
        compile: Whether to compile the network.
        images: The estimated number of images that each worker will see, which compiling has to pay for.
        verbose: Whether to log every image that fails.
    """

    out: str
    recipe: Recipe
    network: str | None
    weights: str | None
    batch_size: int | None
    compile: Compile = "auto"
    images: int = 0
    verbose: bool = False

    def localizer(self) -> Localizer:
        """Return the Localizer of the recipe.

        Raises:
            CommitError: If the weights have changed since the recipe was made.
        """
        return Localizer.from_recipe(
            self.recipe, network=self.network, weights=self.weights, batch_size=self.batch_size
        )


def prepare_process(localizer: Localizer, settings: WorkerSettings, cores: int) -> tuple[ThreadBudget, str]:
    """Divide the cores of this process among its stages and compile the network if that is worthwhile.

    Returns:
        The threads of each stage, and a description of the compilation, see `compile_if_worthwhile`.
    """
    import torch

    threads = divide_threads(cores, gpu=localizer.device.type == "cuda")
    torch.set_num_threads(threads.intra_op_threads)
    return threads, compile_if_worthwhile(
        localizer, settings.compile, settings.images, threads.inference_streams
    )


class LocalizeWorker:
    """Localizes and commits shards, one after another, in a process of its own.

    Args:
        settings: The same for all workers of a run.
        cores: Processor cores of this worker.
    """

    def __init__(self, settings: WorkerSettings, cores: int) -> None:
        write_json_lines(logging.DEBUG if settings.verbose else logging.INFO)
        self._recipe = settings.recipe.id
        self._localizer = settings.localizer()
        self._threads, self._compilation = prepare_process(self._localizer, settings, cores)
        self._connections = Connections()
        self._ledger = Ledger(open_store(settings.out, self._connections), self._recipe)
        self._plans: dict[int, Plan] = {}
        self.progress = WorkerProgress()
        self._stages = StageTimer()
        on_gpu = self._localizer.device.type == "cuda"
        self._metrics = WorkerMetrics(self._recipe, self._stages, on_gpu=on_gpu)
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
            isolate: Whether to decode every image in a process of its own, so that an image that crashes its
                decoder does not end this process.
        """
        with log_context(recipe=self._recipe, generation=generation, shard=shard):
            _log.info("shard started", extra={"isolate": isolate})
            try:
                done = self._run(generation, shard, isolate)
            except Exception as error:
                _log.exception("shard failed", extra={"reason": f"{type(error).__name__}: {error}"})
                raise
            finally:
                self._metrics.publish()
            counts = {"images": done.images, "seconds": round(done.seconds, 3), "bytes": done.part.bytes}
            spent = {"read_bytes": done.stage_times.read_bytes, "stages": rounded(done.stage_times.seconds)}
            _log.info("shard done" if done.seconds else "shard was done before", extra=counts | spent)
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
            on_batch=self._count_batch,
            stage_timer=self._stages,
            isolate=isolate,
        )
        self.progress.running = Counter()  # the driver counts the result itself
        return done

    def _count_batch(self, statuses: Sequence[Status]) -> None:
        self.progress.count_batch(statuses)
        self._metrics.publish(statuses)


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Return seconds by stage, rounded to milliseconds."""
    return {stage: round(value, 3) for stage, value in seconds.items()}


def versions() -> dict[str, str]:
    """Return the versions of everything that decides the bytes of a row."""
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
