"""RayJobs in Kubernetes, managed with kubectl: one object per run of a command."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Final

import yaml

from camworker.errors import UsageError
from jobs.submit.job_spec import Manifest, next_run, runs_of

_ENDED: Final = frozenset({"Complete", "Failed"})
_ATTEMPTS: Final = 5
_TIMEOUT_SECONDS: Final = 60


class RayJobs:
    """The RayJobs of a namespace.

    Args:
        namespace: The namespace; default that of kubectl's current context.

    Raises:
        UsageError: If kubectl is not installed.
    """

    def __init__(self, namespace: str | None) -> None:
        if shutil.which("kubectl") is None:
            raise UsageError(
                "kubectl is not installed: leave out --apply, and apply the printed RayJob on another machine"
            )
        self._namespace = ["--namespace", namespace] if namespace else []

    def create(self, base: str, manifest: Manifest) -> tuple[str, bool]:
        """Create a run of a command, or adopt the run that is active.

        Args:
            base: The id of the command.
            manifest: The RayJob; its name is set here.

        Returns:
            The name of the RayJob and whether an active one was adopted.

        Raises:
            UsageError: If kubectl fails.
        """
        for _ in range(_ATTEMPTS):
            statuses = self.statuses()
            if (running := self.unfinished(base, statuses)) is not None:
                return running, True
            name = next_run(base, statuses)
            manifest["metadata"]["name"] = name
            done = self._kubectl("create", "--filename", "-", text=as_yaml(manifest))
            if not done.returncode:
                return name, False
            if "AlreadyExists" not in done.stderr:  # another submitter was faster: adopt its RayJob
                break
        raise UsageError(f"kubectl create: {_error_of(done)}")

    def statuses(self) -> dict[str, str]:
        """Return the deployment status of every RayJob by name, "" before KubeRay has seen it.

        Raises:
            UsageError: If kubectl fails.
        """
        done = self._kubectl("get", "rayjobs.ray.io", "--output", "json")
        if done.returncode:
            raise UsageError(f"kubectl get rayjobs: {_error_of(done)}")
        jobs = json.loads(done.stdout)["items"]
        return {job["metadata"]["name"]: job.get("status", {}).get("jobDeploymentStatus", "") for job in jobs}

    def unfinished(self, base: str, statuses: Mapping[str, str]) -> str | None:
        """Return the run of a command that waits or runs, or None."""
        active = [name for name in runs_of(base, statuses).values() if statuses[name] not in _ENDED]
        return active[-1] if active else None

    def delete(self, name: str) -> None:
        """Delete a RayJob; KubeRay stops its job first.

        Raises:
            UsageError: If kubectl fails.
        """
        done = self._kubectl("delete", "rayjobs.ray.io", name, "--wait=false")
        if done.returncode:
            raise UsageError(f"kubectl delete: {_error_of(done)}")

    def _kubectl(self, *arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                ["kubectl", *self._namespace, *arguments],
                input=text,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise UsageError(f"kubectl {arguments[0]}: no answer within {_TIMEOUT_SECONDS} s") from error


class _PlainDumper(yaml.SafeDumper):
    """Writes an object that occurs twice in full both times, without YAML anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_manifest(path: str) -> Manifest:
    """Read a YAML file with one manifest.

    Raises:
        UsageError: If the file cannot be read or holds anything else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            manifest = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}", parameter="manifest") from error
    if not isinstance(manifest, dict):
        raise UsageError(f"{path} is not a manifest", parameter="manifest")
    return manifest


def as_yaml(manifest: Manifest) -> str:
    """Return a manifest as YAML, in the order of its keys."""
    return yaml.dump(manifest, Dumper=_PlainDumper, sort_keys=False, width=1000)


def _error_of(done: "subprocess.CompletedProcess[str]") -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
