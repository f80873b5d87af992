"""What submit sends to a cluster: ids, shell commands and RayJobs; and the check of local paths."""

import copy
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from camworker.errors import UsageError
from camworker.storage.uris import is_s3

# A Kubernetes manifest. It is JSON of any shape: only the fields that a command sets are looked at.
Manifest = dict[str, Any]

# Arguments of all commands that name files or folders; a test compares them with the parsers. Files that are
# read once may be uploaded with a clone. Images may not: their identity is the time of their file, which an
# upload does not preserve.
UPLOADABLE: Final = frozenset(
    {
        *("image_labels", "weights", "backbone_weights", "class_names", "classes"),
        *("truth", "masks", "exclude"),
    }
)
NOT_UPLOADABLE: Final = frozenset({"input", "local_root", "output", "to", "report"})
_NOT_PATHS: Final = frozenset({"DEFAULT"})  # a value of --weights that is not a path

_PRESENTATION: Final = frozenset(
    {"json", "verbose", "run"}
)  # arguments that do not change what a command does


def submission_id(arguments: Mapping[str, object]) -> str:
    """Return "camworker-COMMAND-" and 12 hex digits, which are equal for equal arguments.

    KubeRay derives other names from the name of a RayJob, which may have 47 characters at most.

    Args:
        arguments: The parsed arguments of the command, with its name as "command".
    """
    decisive = {
        name: value
        for name, value in arguments.items()
        if name not in _PRESENTATION and value is not None and value is not False and value != []
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return f"camworker-{arguments['command']}-{digest[:12]}"


def runs_of(base: str, names: Iterable[str]) -> dict[int, str]:
    """Return the names that are runs of a command by run number, in order: base is 1, base-2 is 2."""
    matches = ((re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", name), name) for name in names)
    return dict(sorted((int(match[1] or 1), name) for match, name in matches if match))


def next_run(base: str, names: Iterable[str]) -> str:
    """Return the name of the run that follows all runs of a command among names."""
    number = max(runs_of(base, names), default=0) + 1
    return base if number == 1 else f"{base}-{number}"


def entrypoint(argv: Sequence[str], *, from_clone: bool) -> str:
    """Return the shell command of a job.

    Args:
        argv: The arguments after "camworker".
        from_clone: Whether the working directory of the job is a clone that it runs, instead of the installed
            package.
    """
    return shlex.join([*(("python", "-m", "jobs.cli") if from_clone else ("camworker",)), *argv])


def check_paths(arguments: Mapping[str, object], working_dir: str | None) -> list[str]:
    """Check the local paths among the arguments of a command that is to run on a cluster.

    Args:
        arguments: The parsed arguments.
        working_dir: A clone that is uploaded to every node and may hold labels, ground truth and weights.

    Returns:
        A line for each absolute path, about what has to be true of it.

    Raises:
        UsageError: If a relative path would mean another file on every node.
    """
    notes = []
    for name, path in _local_paths(arguments):
        if os.path.isabs(path):
            notes.append(f"{path} has to exist, with the same content, on every node of the cluster")
        elif name in NOT_UPLOADABLE or working_dir is None:
            raise UsageError(
                f"{path} is a path of this machine: use s3://bucket/prefix, or an absolute path that all "
                "nodes of the cluster share"
            )
        elif not os.path.exists(os.path.join(working_dir, path)):
            raise UsageError(f"{path} is not in {working_dir}", parameter="working_dir")
    return notes


def _local_paths(arguments: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in arguments.items():
        if name not in UPLOADABLE | NOT_UPLOADABLE:
            continue
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, str) or path in _NOT_PATHS or is_s3(path):
                continue
            if name != "classes" or os.path.exists(path):  # --classes takes names or a file
                yield name, path


def rayjob(
    base: Manifest,
    name: str,
    entrypoint: str,
    *,
    namespace: str | None,
    image: str | None,
    driver_cpus: float,
    driver_resources: Mapping[str, float],
) -> Manifest:
    """Return a RayJob that runs one command.

    Args:
        base: The RayJob to start from; it is not changed.
        name: The name of the RayJob.
        entrypoint: The shell command.
        namespace: The namespace; default that of base.
        image: An image for every container that has the same image as the head's first container.
        driver_cpus: Cores to reserve for the driver; 0 for none.
        driver_resources: Ray resources that the driver needs.

    Raises:
        UsageError: If base is not a RayJob.
    """
    job = copy.deepcopy(base)
    pods = _pods(job)
    if not pods:
        raise UsageError("the manifest is not a RayJob with a rayClusterSpec", parameter="manifest")
    job["metadata"] = {**job.get("metadata", {}), "name": name}
    if namespace:
        job["metadata"]["namespace"] = namespace
    job["spec"]["entrypoint"] = entrypoint
    if driver_cpus:
        job["spec"]["entrypointNumCpus"] = driver_cpus
    if driver_resources:
        job["spec"]["entrypointResources"] = json.dumps(driver_resources)
    if image:
        before = pods[0]["spec"]["containers"][0].get("image")
        for container in (container for pod in pods for container in pod["spec"]["containers"]):
            if container.get("image") == before:
                container["image"] = image
    return job


def _pods(job: Manifest) -> list[Manifest]:
    """Return the pod templates of a RayJob, the head's first; empty if it is not a RayJob."""
    spec = job.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    if job.get("kind") != "RayJob" or "headGroupSpec" not in cluster:
        return []
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    submitter = [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    return [*(group["template"] for group in groups), *submitter]
