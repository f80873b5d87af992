"""Ray: connecting to a cluster or starting a local one, and how many workers fit on it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import ray

from camworker.errors import UsageError

_CORES_PER_WORKER: Final = 4
_CONNECT_SECONDS: Final = 5.0
_OBJECT_STORE_BYTES: Final = 128 * 2**20  # only small results travel through Ray


@dataclass(frozen=True, slots=True)
class Workers:
    """count actors, each with so many processor cores (threads) and GPUs."""

    count: int
    cores: int
    gpus: float


@contextmanager
def connected(address: str | None, *, verbose: bool) -> Iterator[None]:
    """A connection to a cluster: the one at address, the one that this is a job of, or a local one.

    A local one is started for this run, on loopback. Raises UsageError where none answers.
    """
    address = address or os.environ.get("RAY_ADDRESS")  # Ray sets it inside its jobs
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        _refuse_absent(address)
    try:
        if address:
            ray.init(address=address, log_to_driver=verbose, logging_level="ERROR")
        else:
            ray.init(
                address="local",
                num_cpus=_local_cores(),
                include_dashboard=False,
                log_to_driver=verbose,
                logging_level="ERROR",
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, ValueError) as error:
        where = f"at {address}" if address else "can be started here"
        raise UsageError(f"no Ray cluster {where}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def fit_workers(asked: int | None, gpus_per_worker: float | None) -> Workers:
    """As many workers as the connected cluster holds, or as asked; see divide."""
    resources = ray.cluster_resources()
    return divide(int(resources.get("CPU", 1)), resources.get("GPU", 0.0), asked, gpus_per_worker)


def local_workers(asked: int | None, gpus_per_worker: float | None) -> Workers:
    """fit_workers for this machine, without Ray."""
    import torch

    return divide(_local_cores(), torch.cuda.device_count(), asked, gpus_per_worker)


def divide(cores: int, gpus: float, asked: int | None, gpus_per_worker: float | None) -> Workers:
    """Cores and GPUs over workers: one for each GPU (or share of one), without GPUs one for a few cores.

    Raises UsageError for more workers than there are cores or GPUs to give them.
    """
    each = gpus_per_worker if gpus_per_worker is not None else float(bool(gpus))
    if each > gpus:
        raise UsageError(f"--gpus-per-worker {each:g}: there are {gpus:g} GPUs")
    most = min(cores, int(gpus / each)) if each else cores
    count = asked or (most if each else max(1, cores // _CORES_PER_WORKER))
    if count > most:
        raise UsageError(f"--workers {count}: there are {cores} cores and {gpus:g} GPUs, enough for {most}")
    return Workers(count, cores // count, each)


def _refuse_absent(address: str) -> None:
    """Ask for the port first: Ray itself tries an absent cluster for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and its like: Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address}: {error}") from error


def _local_cores() -> int:
    return len(os.sched_getaffinity(0))
