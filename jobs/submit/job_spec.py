"""What submit sends: ids from commands, entrypoints, RayJobs; and which local paths a cluster has to see."""

import argparse
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

# Arguments of the commands that name files or folders; a test holds this against their parsers.
# What is read once may be sent along; images are known by the time of their file, which a copy does not keep.
SENT: Final = frozenset(
    {
        *("image_labels", "weights", "backbone_weights", "class_names", "classes"),
        *("truth", "masks", "exclude"),
    }
)
NOT_SENT: Final = frozenset({"input", "local_root", "output", "to", "report"})
_NO_PATHS: Final = frozenset({"DEFAULT", "random"})  # of the library, or none at all

_NOT_PART_OF_IT: Final = frozenset({"json", "verbose", "run"})  # how a command speaks, not what it does


def submission_id(args: argparse.Namespace) -> str:
    """camworker-COMMAND-<12 hex>: the same for the same parsed command, however it was written.

    Short enough for a RayJob, of whose name KubeRay makes others (at most 47 characters).
    """
    asked = {
        name: value
        for name, value in vars(args).items()
        if name not in _NOT_PART_OF_IT and value is not None and value is not False and value != []
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"camworker-{args.command}-{digest[:12]}"


def runs_of(base: str, names: Iterable[str]) -> dict[int, str]:
    """Those of names that are runs of one command, by number, in order: base is 1, base-2 is 2."""
    found = ((re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", name), name) for name in names)
    return dict(sorted((int(match[1] or 1), name) for match, name in found if match))


def next_run(base: str, names: Iterable[str]) -> str:
    """The name of the run after those among names."""
    number = max(runs_of(base, names), default=0) + 1
    return base if number == 1 else f"{base}-{number}"


def entrypoint(argv: Sequence[str], *, from_clone: bool) -> str:
    """The shell command of a job: of the installed package, or of the clone that is its working directory."""
    return shlex.join([*(("python", "-m", "jobs.cli") if from_clone else ("camworker",)), *argv])


def check_paths(args: argparse.Namespace, working_dir: str | None) -> list[str]:
    """What has to be true of the local paths in a parsed command, a line each.

    Raises UsageError for relative ones, which would mean another place on every node. Labels, truth and
    weights may lie in working_dir, of which every node gets a copy.
    """
    notes = []
    for name, path in _local_paths(args):
        if os.path.isabs(path):
            notes.append(f"{path} has to be there, and the same, on every node of the cluster")
        elif name in NOT_SENT or working_dir is None:
            raise UsageError(
                f"{path} is a path of this machine: name s3://bucket/prefix, or the absolute path of what "
                "all nodes of the cluster share"
            )
        elif not os.path.exists(os.path.join(working_dir, path)):
            raise UsageError(f"{path} is not in --working-dir {working_dir}")
    return notes


def _local_paths(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for name, value in vars(args).items():
        if name not in SENT | NOT_SENT:
            continue
        for path in value if isinstance(value, list) else [value]:
            # Classes are given by names, or in a file.
            is_path = (
                path is not None and path not in _NO_PATHS and (name != "classes" or os.path.exists(path))
            )
            if is_path and not is_s3(path):
                yield name, path


def rayjob(
    base: Mapping[str, Any],
    name: str,
    entrypoint: str,
    *,
    namespace: str | None,
    image: str | None,
    driver_cpus: float,
    driver_resources: Mapping[str, float],
) -> dict[str, Any]:
    """base, a RayJob, for one command. image: of every container that has the one of the head's first.

    Raises UsageError where base is no RayJob.
    """
    job = copy.deepcopy(dict(base))
    pods = _pods(job)
    if not pods:
        raise UsageError("the manifest is no RayJob with a rayClusterSpec")
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
        for container in (each for pod in pods for each in pod["spec"]["containers"]):
            if container.get("image") == before:
                container["image"] = image
    return job


def _pods(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a RayJob, the head's first; none where it is no RayJob with a cluster."""
    spec = job.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    if job.get("kind") != "RayJob" or "headGroupSpec" not in cluster:
        return []
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    submitter = [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    return [*(group["template"] for group in groups), *submitter]
