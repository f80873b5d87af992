"""The Ray actor that runs a worker in a process of its own."""

import pickle
from typing import Any, Final, Protocol, TypedDict

import ray

from camworker.errors import CamworkerError
from jobs.driver.garbage_collection import collect_garbage_less_often
from jobs.driver.worker_progress import WorkerProgress
from jobs.ray_cluster import Workers

_PROGRESS_GROUP: Final = "progress"  # a thread of its own answers while another one runs a shard


class RuntimeInfo(TypedDict, total=False):
    """What a worker found out about its machine, for the metadata of parts and run records."""

    device: str
    precision: str
    compilation: str
    decoder: str
    versions: dict[str, str]


class Worker(Protocol):
    """What the driver runs on the cluster.

    Attributes:
        progress: Updated by the worker while it runs a shard.
    """

    progress: WorkerProgress

    def __init__(self, settings: Any, cores: int) -> None: ...

    def runtime_info(self) -> RuntimeInfo:
        """Return what the worker found out about its machine."""
        ...

    def run(self, *arguments: Any) -> Any:
        """Run a shard; the last argument says whether to decode every image in a process of its own."""
        ...


class WorkerProcess:
    """The actor around a worker.

    Args:
        worker_and_settings: The pickled class of the worker and its settings. They are unpickled here, and
            not by Ray, because that imports torch and the garbage collector has to be set up before.
        cores: Processor cores of the worker.
    """

    def __init__(self, worker_and_settings: bytes, cores: int) -> None:
        collect_garbage_less_often()
        worker_class, settings = pickle.loads(worker_and_settings)
        self._error: CamworkerError | None = None
        try:
            self._worker: Worker = worker_class(settings, cores)
        except CamworkerError as error:
            # Ray reports the error of a constructor as text only; `introduce` raises the exception.
            self._error = error

    def introduce(self) -> tuple[RuntimeInfo, str]:
        """Return the worker's runtime information and the id of its node.

        Raises:
            CamworkerError: If the worker could not be constructed.
        """
        if self._error:
            raise self._error
        return self._worker.runtime_info(), ray.get_runtime_context().get_node_id()

    def run(self, *arguments: Any) -> Any:
        """Run a shard."""
        return self._worker.run(*arguments)

    @ray.method(concurrency_group=_PROGRESS_GROUP)  # type: ignore[untyped-decorator]  # ray has no types
    def progress(self) -> WorkerProgress:
        """Return the progress of the worker."""
        return self._worker.progress


class RayWorker:
    """The driver's side of a worker process: start it, call it, end it.

    Args:
        worker: The class of the worker.
        settings: The first argument of its constructor.
        workers: The resources of each worker.
    """

    def __init__(self, worker: type[Worker], settings: object, workers: Workers) -> None:
        actor_class = ray.remote(
            num_cpus=workers.cores, num_gpus=workers.gpus, concurrency_groups={_PROGRESS_GROUP: 1}
        )(WorkerProcess)
        self._actor = actor_class.remote(ray.cloudpickle.dumps((worker, settings)), workers.cores)

    def introduce(self) -> ray.ObjectRef:
        """Ask for the worker's runtime information and node id, which are there once it has started."""
        return self._actor.introduce.remote()

    def run(self, *arguments: Any) -> ray.ObjectRef:
        """Queue a shard behind those that were queued before."""
        return self._actor.run.remote(*arguments)

    def progress(self) -> ray.ObjectRef:
        """Ask for the worker's progress; it answers while it runs a shard."""
        return self._actor.progress.remote()

    def end(self) -> None:
        """End the process."""
        ray.kill(self._actor)
