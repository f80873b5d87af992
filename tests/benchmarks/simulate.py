"""Measure the capacity of the real driver, with a thousand workers that sleep where the network would run.

python tests/benchmarks/simulate.py --workers 1000 --shards 4000 --seconds 40 --losses 2

A thousand actors would need hundreds of machines; here each of --hosts asynchronous actors stands for many
workers. Everything else is real: the driver, Ray, the ledger, the plan, and the part of every shard, which
run_shard reads, decodes, boxes, checks and commits. With --parts none the workers commit nothing and return
a made-up part, so that only the driver is measured. --losses kills this many hosts per minute, with all of
their workers.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from simulated_workers import Host, LogicalWorker, Settings, rss_mb

from camworker.inputs import ReadPolicy
from camworker.ledger import plan as plans
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Plan
from camworker.schemas import ITEMS
from camworker.storage.local import identity_of_file
from camworker.storage.uris import open_store
from jobs.driver.driver import Driver
from jobs.driver.outcome import Outcome
from jobs.driver.worker_process import RayWorker
from jobs.localize.generation_runner import _run_record
from jobs.ray_cluster import Workers, connected

RECIPE = "r0123456789ab"
SHARDS_PER_FILE = 244  # of a plan file in shards of 4096 images


class Hosts:
    """The actors that stand for workers.

    Attributes:
        started: Every worker, in the order in which the driver started them.
        living: The actors that were not killed.
    """

    def __init__(self, settings: Settings, count: int, slots: int) -> None:
        self._settings, self._slots = settings, slots
        self._free: list[Any] = []
        self._lock = threading.Lock()
        self.started: list[LogicalWorker] = []
        self.living = [self._new() for _ in range(count)]
        ray.get([host.is_up.remote() for host in self.living])

    def start(self, worker: type, settings: Any, workers: Workers) -> RayWorker:
        """Start a worker for the driver, on a host with a free slot or on a new host."""
        with self._lock:
            if not self._free:
                self.living.append(self._new())
            self.started.append(LogicalWorker(self._free.pop(), len(self.started)))
            return self.started[-1]

    def lose(self) -> None:
        """Kill a random host with all its workers."""
        with self._lock:
            host = self.living.pop(random.randrange(len(self.living)))
            self._free = [other for other in self._free if other is not host]
        host.die.remote()

    def _new(self) -> Any:
        host = ray.remote(num_cpus=0, max_concurrency=10_000)(Host).remote(self._settings)
        self._free += [host] * self._slots
        return host


class Sampler(threading.Thread):
    """Samples the time, processor seconds of the process and of the driver's loop, and MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._loop = time.pthread_getcpuclockid(threading.main_thread().ident)
        self._ended = threading.Event()
        self.samples: list[tuple[float, float, float, float]] = []

    def run(self) -> None:
        while not self._ended.wait(0.5):
            now, process, loop = time.monotonic(), time.process_time(), time.clock_gettime(self._loop)
            self.samples.append((now, process, loop, rss_mb()))

    def end(self) -> None:
        self._ended.set()
        self.join()

    def share(self, column: int, since: float, until: float) -> float:
        """Return the processor seconds per second between two times."""
        times, values = np.array(self.samples)[:, 0], np.array(self.samples)[:, column]
        return float(np.diff(np.interp([since, until], times, values))[0] / (until - since))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--shards", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=40.0, help="per shard, plus or minus 20%%")
    parser.add_argument("--losses", type=float, default=0.0, help="hosts killed per minute")
    parser.add_argument("--most-losses", type=int, default=10**9, help="largest number of hosts killed")
    parser.add_argument("--parts", choices=("real", "none"), default="real")
    parser.add_argument("--images", type=int, default=4, help="per real part")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connected(None, verbose=False):
        result = simulate(args, Path(folder))
    for name, value in result.items():
        print(f"{name:32}{value}")
    print(json.dumps(result))


def simulate(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    ledger = Ledger(open_store(str(folder / "out")), RECIPE)
    plan = make_plan(ledger, folder, args) if args.parts == "real" else None
    slots = -(-args.workers // args.hosts)
    hosts = Hosts(Settings(ledger, plan, args.seconds, args.images), args.hosts, slots)
    finished: list[float] = []

    def keep(done: Any) -> Any:
        finished.append(time.monotonic())
        return done

    told: list[str] = []
    workers = Workers(args.workers, 1, 0)
    driver = Driver[Any](
        Host, None, workers, lambda images: None, reduce=keep, on_warning=told.append, start=hosts.start
    )
    watch, losses, ended = Sampler(), list[float](), threading.Event()
    loser = threading.Thread(
        target=lose, args=(hosts, args.losses, args.most_losses, losses, ended), daemon=True
    )
    before, began = rss_mb(), time.monotonic()
    watch.start()
    loser.start()
    outcome = driver.run([(1, shard) for shard in range(args.shards)])
    took = time.monotonic() - began
    ended.set()
    loser.join()
    watch.end()
    after = rss_mb()

    up = max(worker.first_at for worker in hosts.started[: args.workers])
    window, rate = steady(finished, up + 1.2 * args.seconds, args.shards - args.workers)
    return {
        **{name: getattr(args, name) for name in ("workers", "hosts", "shards", "seconds", "parts")},
        "took_seconds": round(took, 1),
        "all_workers_running_after_seconds": round(up - began, 2),
        "demand_shards_per_second": round(args.workers / args.seconds, 1),
        "steady_shards_per_second": round(rate, 1),
        "mean_shards_per_second": round(len(finished) / (max(finished) - began), 1),
        "process_cores": round(watch.share(1, *window), 3),
        "loop_cores": round(watch.share(2, *window), 3),
        "loop_ms_per_shard": round(1e3 * watch.share(2, *window) / rate, 3),
        "rss_mb_before": round(before),
        "rss_mb_peak": round(max(mb for *_, mb in watch.samples)),
        "rss_mb_after": round(after),
        **account_of_losses(hosts.started[args.workers :], losses, told),
        **account_of_shards(ledger, plan, outcome, args, len(finished), took),
    }


def steady(finished: list[float], since: float, last: int) -> tuple[tuple[float, float], float]:
    """Shards a second while every worker has one: from since, when all have had their first, to the last.

    Of a run without such a time, over all of it.
    """
    window = (since, finished[last]) if 0 < last < len(finished) else (0.0, 0.0)
    if window[0] >= window[1]:
        window = (finished[0], finished[-1])
    return window, sum(window[0] < at <= window[1] for at in finished) / (window[1] - window[0])


def lose(hosts: Hosts, a_minute: float, most: int, losses: list[float], ended: threading.Event) -> None:
    """Lose hosts at this rate until the run has ended, and no more than most."""
    while a_minute and len(losses) < most and not ended.wait(60 / a_minute):
        losses.append(time.monotonic())
        hosts.lose()


def make_plan(ledger: Ledger, folder: Path, args: argparse.Namespace) -> Plan:
    """A real plan; its images are one small file under many names."""
    image = folder / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(image)
    count = args.shards * args.images
    items = pa.table(
        {
            "image_id": [f"folder/{number:09d}.jpg" for number in range(count)],
            "uri": [str(image)] * count,
            "source_row": pa.nulls(count, pa.int64()),
            "identity": [identity_of_file(image.stat())] * count,
            "labels": pa.array([[]] * count, ITEMS.field("labels").type),
            "size": [image.stat().st_size] * count,
        },
        ITEMS,
    )
    with mock.patch.object(plans, "_ITEMS_PER_FILE", SHARDS_PER_FILE * args.images):
        return plans.write_generation(ledger, 1, items, args.images, ReadPolicy())


def account_of_losses(
    replacements: list[LogicalWorker], losses: list[float], told: list[str]
) -> dict[str, Any]:
    """Return how many hosts and workers were lost, and how soon all replacements had a shard."""
    back = []
    for at, following in pairwise([*losses, float("inf")]):
        mine = [worker for worker in replacements if at <= worker.made_at < following]
        if mine and all(worker.first_at for worker in mine):
            back.append(max(worker.first_at for worker in mine) - at)
    charged = sum("ended its worker" in line or "hung its worker" in line for line in told)
    return {
        "hosts_lost": len(losses),
        "workers_replaced": len(replacements),
        "shards_charged": charged,
        "all_replaced_after_seconds": [round(seconds, 1) for seconds in back],
    }


def account_of_shards(
    ledger: Ledger, plan: Plan | None, outcome: Outcome, args: argparse.Namespace, kept: int, took: float
) -> dict[str, Any]:
    """Return whether each shard was done once, and what the run record takes."""
    started = time.monotonic()
    ledger.commit_run(_run_record(plan or Plan(RECIPE, 1, (), ReadPolicy()), outcome, took))
    seconds = time.monotonic() - started
    run = next(entry for entry in ledger.store.list() if entry.key.endswith("run-0001.json"))
    return {
        "done": len(outcome.done),
        "results_kept": kept,
        "lost": len(outcome.lost),
        "stopped": outcome.stopped,
        "parts_committed": len(ledger.parts()),
        "run_record_bytes": run.size,
        "run_record_seconds": round(seconds, 2),
        "rss_mb_with_run_record": round(rss_mb()),
    }


if __name__ == "__main__":
    main()
