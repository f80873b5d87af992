"""Ray: connecting to a cluster or starting a local one, and how many workers fit on it."""

import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ray
from ray._private import ray_constants
from ray._private.state import available_resources_per_node

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


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What a node has for workers."""

    cores: int
    gpus: float

    def holds(self, cores: int, gpus: float) -> int:
        """How many workers of so many cores and GPUs (of which there may be none) fit on it."""
        by_cores = self.cores // cores
        return min(by_cores, int(self.gpus / gpus)) if gpus else by_cores


@contextmanager
def connected(address: str | None, *, verbose: bool) -> Iterator[None]:
    """A connection to a cluster: the one at address, the one that this is a job of, or a local one.

    A local one is started for this run, on loopback. Raises UsageError where none answers.
    """
    address = address or os.environ.get("RAY_ADDRESS")  # Ray sets it inside its jobs
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # of "auto" and its like Ray knows at once
            refuse_absent(host, int(port), address)
    try:
        if address:
            ray.init(address=address, log_to_driver=verbose, logging_level="ERROR")
        else:
            _make_token()
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=_local_cores(),
                    include_dashboard=False,
                    log_to_driver=verbose,
                    logging_level="ERROR",
                    object_store_memory=_OBJECT_STORE_BYTES,
                )
    except (ConnectionError, ValueError) as error:
        where = f"at {address}" if address else "can be started here"
        raise UsageError(f"no Ray cluster {where}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _make_token() -> None:
    """Make the token that Ray asks of who connects; where Ray makes it, all users of the machine read it."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # where there is no home to write to, Ray says so
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(draft, path)
        os.unlink(draft)
        path.chmod(0o600)  # also one that an earlier Ray made


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have Ray, started inside, listen on 127.0.0.1 alone.

    It takes that address for a node only where it believes that there can be no cluster. Told the address
    as an option, it puts one that other machines can reach in its place, and listens on all of them.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def plan_workers(asked: int | None, gpus_per_worker: float | None) -> Workers:
    """As many workers as the connected cluster holds, or as asked; see divide."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    # A driver that a job reserved cores for holds them on its own node.
    nodes[here] = available_resources_per_node().get(here, nodes[here])
    rooms = [NodeCapacity(int(node.get("CPU", 0)), node.get("GPU", 0.0)) for node in nodes.values()]
    return allocate(rooms, asked, gpus_per_worker)


def local_workers(asked: int | None, gpus_per_worker: float | None) -> Workers:
    """fit_workers for this machine, without Ray."""
    import torch

    return allocate([NodeCapacity(_local_cores(), torch.cuda.device_count())], asked, gpus_per_worker)


def allocate(nodes: Sequence[NodeCapacity], asked: int | None, gpus_per_worker: float | None) -> Workers:
    """Cores and GPUs over workers: one for each GPU (or share of one), without GPUs one for a few cores.

    A worker lies on one node, and all have as many cores. Raises UsageError for more workers than there
    are cores or GPUs to give them.
    """
    cores, gpus = sum(node.cores for node in nodes), sum(node.gpus for node in nodes)
    each = gpus_per_worker if gpus_per_worker is not None else float(bool(gpus))
    if each > max((node.gpus for node in nodes), default=0.0):
        raise UsageError(f"--gpus-per-worker {each:g}: no node has as many ({gpus:g} GPUs in all)")
    most = sum(node.holds(1, each) for node in nodes)
    few = sum(max(1, node.cores // _CORES_PER_WORKER) for node in nodes if node.cores)
    count = asked or (most if each else few)
    if not most:
        raise UsageError("no node has cores for a worker: start nodes with cores (num-cpus) and try again")
    if count > most:
        raise UsageError(f"--workers {count}: there are {cores} cores and {gpus:g} GPUs, enough for {most}")
    sizes = range(max(node.cores for node in nodes), 0, -1)
    return Workers(count, next(s for s in sizes if sum(node.holds(s, each) for node in nodes) >= count), each)


def refuse_absent(host: str, port: int, address: str) -> None:
    """Ask for the port first: Ray itself tries an absent cluster for many minutes. Raises UsageError."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address}: {error}") from error


def _local_cores() -> int:
    return len(os.sched_getaffinity(0))
