"""Ray: connect to a cluster or start a local one, size the workers, and use what Ray keeps private.

Everything that Ray does not document is used in this module only: private modules, internal environment
variables and the wording of messages. `tests/jobs/test_ray_internals.py` fails when Ray changes one of them.
"""

import os
import re
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
from ray.exceptions import RayActorError, RayTaskError

from camworker.errors import CamworkerError, UsageError, first_line

_CORES_PER_WORKER: Final = 4
_CONNECT_SECONDS: Final = 5.0
_OBJECT_STORE_BYTES: Final = 128 * 2**20  # only small results travel through Ray

# Ray sets this variable in the processes of a job.
_JOB_VARIABLE: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Ray reads this variable in the runtime environment of a job: how long a stopped job may take to end.
JOB_STOP_VARIABLE: Final = "RAY_JOB_STOP_WAIT_TIME_S"
JOBS_LOGGER: Final = "ray.dashboard.modules.job.sdk"
# Values of JobDetails.error_type of a job whose command was never started.
NOT_STARTED_ERRORS: Final = frozenset(
    {
        *("RUNTIME_ENV_SETUP_FAILURE", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"),
        *("JOB_SUPERVISOR_ACTOR_START_FAILURE", "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"),
        "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    }
)
_COMMON_CAUSES: Final = " Some common causes"  # begins a list of advice in the message of a lost worker
_STATUS_CODE: Final = re.compile(r"status code (\d{3})")


@dataclass(frozen=True, slots=True)
class Workers:
    """The size of a group of equal workers.

    Attributes:
        count: Number of workers.
        cores: Processor cores of each worker.
        gpus: GPUs of each worker; may be a fraction.
    """

    count: int
    cores: int
    gpus: float


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """The cores and GPUs of a node that workers may use."""

    cores: int
    gpus: float

    def holds(self, cores: int, gpus: float) -> int:
        """Return how many workers with this many cores and GPUs fit on the node; gpus may be 0."""
        by_cores = self.cores // cores
        return min(by_cores, int(self.gpus / gpus)) if gpus else by_cores


@contextmanager
def connected(address: str | None, *, verbose: bool) -> Iterator[None]:
    """Connect to a cluster for the duration of the context.

    Args:
        address: The cluster to join. Default: the cluster of the job that this process belongs to, or else
            a local one that listens on loopback and ends with the context.
        verbose: Whether to print the logs of the workers.

    Raises:
        UsageError: If no cluster answers or none can be started.
    """
    address = address or os.environ.get("RAY_ADDRESS")  # Ray sets it inside its jobs
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # Ray resolves "auto" and similar names without delay
            require_listener(host, int(port), address)
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
        where = f"at {address}" if address else "can be started on this machine"
        raise UsageError(f"no Ray cluster {where}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _make_token() -> None:
    """Create the token that a local Ray asks of its clients, readable by its owner only.

    Ray itself would create the file readable by all users of the machine.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # if the home folder cannot be written, Ray reports it
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(draft, path)
        os.unlink(draft)
        path.chmod(0o600)  # an earlier version of Ray may have created the file


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a Ray that starts inside the context listen on 127.0.0.1 only.

    Ray binds to loopback only when clusters are disabled. If 127.0.0.1 is passed explicitly, Ray substitutes
    an external address and listens on all interfaces.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def plan_workers(count: int | None, gpus_per_worker: float | None) -> Workers:
    """Size the workers for the connected cluster; see `allocate`."""
    this_node = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    # A job may have reserved cores for its driver; they are not available to workers on this node.
    nodes[this_node] = available_resources_per_node().get(this_node, nodes[this_node])
    capacities = [NodeCapacity(int(node.get("CPU", 0)), node.get("GPU", 0.0)) for node in nodes.values()]
    return allocate(capacities, count, gpus_per_worker)


def local_workers(count: int | None, gpus_per_worker: float | None) -> Workers:
    """Size the workers for this machine without Ray; see `allocate`."""
    import torch

    return allocate([NodeCapacity(_local_cores(), torch.cuda.device_count())], count, gpus_per_worker)


def allocate(nodes: Sequence[NodeCapacity], count: int | None, gpus_per_worker: float | None) -> Workers:
    """Divide the cores and GPUs of nodes among equal workers, each of which runs on one node.

    Args:
        nodes: The nodes of the cluster.
        count: Number of workers. Default: one per GPU (or per share of a GPU), or without GPUs one for every
            four cores of a node.
        gpus_per_worker: GPUs of each worker, or a fraction of one. Default: 1 if there are GPUs.

    Raises:
        UsageError: If there are not enough cores or GPUs for the workers.
    """
    cores, gpus = sum(node.cores for node in nodes), sum(node.gpus for node in nodes)
    share = gpus_per_worker if gpus_per_worker is not None else float(bool(gpus))
    if share > max((node.gpus for node in nodes), default=0.0):
        raise UsageError(
            f"no node has {share:g} GPUs for a worker ({gpus:g} GPUs in all)", parameter="gpus_per_worker"
        )
    most = sum(node.holds(1, share) for node in nodes)
    if not most:
        raise UsageError("no node has cores for a worker: start nodes with cores (num-cpus) and try again")
    if count is None:
        count = (
            most if share else sum(max(1, node.cores // _CORES_PER_WORKER) for node in nodes if node.cores)
        )
    if count > most:
        raise UsageError(
            f"{count} workers do not fit: there are {cores} cores and {gpus:g} GPUs, enough for {most}",
            parameter="workers",
        )
    sizes = range(max(node.cores for node in nodes), 0, -1)
    size = next(size for size in sizes if sum(node.holds(size, share) for node in nodes) >= count)
    return Workers(count, size, share)


def require_listener(host: str, port: int, address: str) -> None:
    """Check that something listens at a port, because Ray itself retries an absent cluster for minutes.

    Raises:
        UsageError: If nothing listens.
    """
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address}: {error}", parameter="address") from error


def live_nodes() -> set[str]:
    """Return the ids of the nodes that the cluster counts as alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def in_job() -> bool:
    """Return whether this process is the driver of a Ray job, whose output is collected by the cluster."""
    return _JOB_VARIABLE in os.environ


def failed_in_constructor(error: Exception) -> bool:
    """Return whether an actor is dead because its constructor raised."""
    return isinstance(error, RayActorError) and error.actor_init_failed


def original_error(error: RayTaskError) -> Exception:
    """Return the exception to raise for a task that failed.

    An error of camworker is returned as it was raised. Ray's own wrapper would turn its one-line message
    into a traceback, which is what other exceptions need.
    """
    return error.cause if isinstance(error.cause, CamworkerError) else error.as_instanceof_cause()


def loss_reason(error: Exception) -> str:
    """Return the line of Ray's message about a lost worker that says why it was lost."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[-1].partition(_COMMON_CAUSES)[0]


def http_status(error: Exception) -> int | None:
    """Return the HTTP status in an error of Ray's job client, or None if the message names none."""
    match = _STATUS_CODE.search(str(error))
    return int(match[1]) if match else None


def _local_cores() -> int:
    return len(os.sched_getaffinity(0))
