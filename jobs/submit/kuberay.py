"""RayJobs in Kubernetes, by kubectl: one object for each run of a command."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Final

import yaml

from camworker.errors import UsageError
from jobs.submit.job_spec import next_run, runs_of

_ENDED: Final = frozenset({"Complete", "Failed"})
_TRIES: Final = 5
_SECONDS: Final = 60


class RayJobs:
    """The RayJobs of a namespace; default: the one of the current context."""

    def __init__(self, namespace: str | None) -> None:
        if shutil.which("kubectl") is None:
            raise UsageError(
                "there is no kubectl here: leave out --apply, and apply the printed RayJob elsewhere"
            )
        self._where = ["--namespace", namespace] if namespace else []

    def create(self, base: str, manifest: dict[str, Any]) -> tuple[str, bool]:
        """Create a run of the command whose name is base, or adopt the one that goes on: name, if adopted.

        Raises UsageError where kubectl refuses.
        """
        for _ in range(_TRIES):
            states = self.states()
            if (running := self.unfinished(base, states)) is not None:
                return running, True
            name = next_run(base, states)
            manifest["metadata"]["name"] = name
            done = self._kubectl("create", "--filename", "-", text=as_yaml(manifest))
            if not done.returncode:
                return name, False
            if "AlreadyExists" not in done.stderr:
                break
        raise UsageError(f"kubectl create: {_said(done)}")

    def states(self) -> dict[str, str]:
        """Name -> what KubeRay says of it ("" at first), of all RayJobs that are there."""
        done = self._kubectl("get", "rayjobs.ray.io", "--output", "json")
        if done.returncode:
            raise UsageError(f"kubectl get rayjobs: {_said(done)}")
        jobs = json.loads(done.stdout)["items"]
        return {job["metadata"]["name"]: job.get("status", {}).get("jobDeploymentStatus", "") for job in jobs}

    def unfinished(self, base: str, states: Mapping[str, str]) -> str | None:
        """The run of a command that waits or runs; None where there is none."""
        going = [name for name in runs_of(base, states).values() if states[name] not in _ENDED]
        return going[-1] if going else None

    def delete(self, name: str) -> None:
        """Delete a RayJob: KubeRay stops its job first. Raises UsageError where kubectl refuses."""
        done = self._kubectl("delete", "rayjobs.ray.io", name, "--wait=false")
        if done.returncode:
            raise UsageError(f"kubectl delete: {_said(done)}")

    def _kubectl(self, *arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                ["kubectl", *self._where, *arguments],
                input=text,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"kubectl {arguments[0]}: no answer within {_SECONDS} s") from error


class _Plain(yaml.SafeDumper):
    """What is the same object twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_manifest(path: str) -> dict[str, Any]:
    """The one manifest in a YAML file. Raises UsageError."""
    try:
        with open(path, encoding="utf-8") as file:
            manifest = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"--manifest {path}: {' '.join(str(error).split())}") from error
    if not isinstance(manifest, dict):
        raise UsageError(f"--manifest {path} is no manifest")
    return manifest


def as_yaml(manifest: Mapping[str, Any]) -> str:
    """A manifest for people and for kubectl, in the order of its keys."""
    return yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=1000)


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
