"""camworker in one process, without Ray, for the speed benchmark: it runs wherever torch does."""

import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from camworker import Localizer
from camworker.images.decode import PreprocessedImage
from camworker.inference.pipeline import localize_items
from camworker.inference.prefetch import ThreadBudget, divide_threads
from camworker.inference.preprocessor import ImageInFlight, Preprocessor
from camworker.inputs import ReadPolicy
from camworker.networks.package import load
from jobs.localize.compile_cache import compile_if_worthwhile


class InProcess:
    """Measures a Localizer that is set up as in a worker with all cores of this machine."""

    def __init__(self, files: list[Path], network: str, weights_from: str | None, compile: str) -> None:
        self.package = load(network, weights_from)
        self.localizer = Localizer(self.package)
        gpu = self.localizer.device.type == "cuda"
        self.threads: ThreadBudget = divide_threads(len(os.sched_getaffinity(0)), gpu=gpu)
        torch.set_num_threads(self.threads.intra_op_threads)
        started = time.perf_counter()
        self.compilation = compile_if_worthwhile(self.localizer, compile, 0, self.threads.inference_streams)  # type: ignore[arg-type]
        self.compile_seconds = time.perf_counter() - started
        self.cpu_preprocessor = Preprocessor(self.localizer.frame_spec, torch.device("cpu"))
        self.files = files
        self.items = pa.table(
            {
                "image_id": [f"{number}/{file.name}" for number, file in enumerate(files)],
                "uri": [str(file) for file in files],
                "source_row": pa.nulls(len(files), pa.int64()),
                "identity": [""] * len(files),
                "labels": pa.array([[]] * len(files), pa.list_(pa.int32())),
            }
        )

    def describe(self) -> dict[str, object]:
        return {
            "device": str(self.localizer.device),
            "network": self.package.name,
            "precision": str(self.localizer.dtype).removeprefix("torch."),
            "compilation": self.compilation,
            "compile_or_load_seconds": round(self.compile_seconds, 1),
            "batch_size": self.localizer.batch_size,
            "decoders": self.threads.decode_threads,
            "streams": self.threads.inference_streams,
            "threads_each": self.threads.intra_op_threads,
        }

    def whole(self) -> float:
        """Return images/s of the whole pipeline, from files to rows, after the first batch."""
        first = last = 0.0
        count = 0
        for rows, _ in localize_items(
            self.items,
            self.localizer,
            ReadPolicy(check_identity=False),
            decode_threads=self.threads.decode_threads,
            inference_streams=self.threads.inference_streams,
        ):
            last = time.perf_counter()
            if first:
                count += rows.num_rows
            first = first or last
        return count / (last - first)

    def decoding(self) -> float:
        """Return images/s of reading, decoding and resizing alone, on all cores."""
        with ThreadPoolExecutor(self.threads.decode_threads) as pool:
            started = time.perf_counter()
            for _ in pool.map(
                lambda file: self.cpu_preprocessor.preprocess_on_cpu(file.read_bytes()), self.files
            ):
                pass
            return len(self.files) / (time.perf_counter() - started)

    def network(self) -> float:
        """Return images/s of the network alone, on pixels that were decoded before."""
        batches = [batch for batch in self._prepared() if len(batch) == self.localizer.batch_size]

        with ThreadPoolExecutor(self.threads.inference_streams) as pool:
            list(pool.map(self._run_network, batches[: self.threads.inference_streams]))
            started = time.perf_counter()
            list(pool.map(self._run_network, batches))
            return len(batches) * self.localizer.batch_size / (time.perf_counter() - started)

    def stages(self) -> dict[str, float]:
        """Return the milliseconds per image of each stage, run one after the other: medians over batches."""
        spent: dict[str, list[float]] = {}
        size = self.localizer.batch_size

        def timed(name: str, run: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            result = run()
            spent.setdefault(name, []).append(1000 * (time.perf_counter() - started) / size)
            return result

        for start in range(0, min(len(self.files), 12 * size) - size + 1, size):
            batch = timed("decode", partial(self._prepare, self.files[start : start + size]))
            good = [image for image in batch if isinstance(image, PreprocessedImage)]
            run_network = partial(self._run_network, good)
            run_network()  # The first call would include the time to load the pixels into the caches.
            timed("network", run_network)
            maps = timed("network_and_maps", partial(self.localizer.forward, batch, [()] * size))
            timed("boxes_rows", partial(self.localizer.postprocess, maps, batch))
        medians = {name: statistics.median(values) for name, values in spent.items()}
        medians["maps"] = medians.pop("network_and_maps") - medians["network"]
        return {name: round(value, 3) for name, value in medians.items()}

    def _run_network(self, batch: list[PreprocessedImage]) -> None:
        with self.localizer.stream():
            self.localizer.features(batch)[1].cpu()

    def _prepare(self, files: list[Path]) -> list[ImageInFlight]:
        return [self.cpu_preprocessor.preprocess_on_cpu(file.read_bytes()) for file in files]

    def _prepared(self) -> Iterator[list[PreprocessedImage]]:
        size = self.localizer.batch_size
        for start in range(0, min(len(self.files), 25 * size), size):
            batch = self._prepare(self.files[start : start + size])
            yield [image for image in batch if isinstance(image, PreprocessedImage)]


def peak_memory() -> float:
    """Return the peak of resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
