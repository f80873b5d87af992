"""What submit refuses before it sends anything, and RayJobs that a stand-in for kubectl keeps."""

import json
import os
from pathlib import Path

import pytest
import yaml

from support.cli_runner import Finished, camworker

LOCALIZE = ("localize", "s3://b/in", "--output", "s3://b/out")
KUBECTL = '''#!/usr/bin/env python3
"""Keeps RayJobs in a file."""
import json, os, sys
import yaml

path = os.environ["RAYJOBS"]
jobs = json.load(open(path)) if os.path.exists(path) else {}
words = sys.argv[1:]
if "get" in words:
    items = [{"metadata": {"name": n}, "status": {"jobDeploymentStatus": s}} for n, s in jobs.items()]
    print(json.dumps({"items": items}))
elif "create" in words:
    job = yaml.safe_load(sys.stdin)
    if job["metadata"]["namespace"] != words[words.index("--namespace") + 1]:
        sys.exit("error: the namespace does not match")
    jobs[job["metadata"]["name"]] = "Running"
elif "delete" in words:
    name = words[words.index("rayjobs.ray.io") + 1]
    if jobs.pop(name, None) is None:
        sys.exit(f'Error from server (NotFound): rayjobs.ray.io "{name}" not found')
json.dump(jobs, open(path, "w"))
'''

BAD_USAGE = {
    "nothing to run": ((), "no command to run"),
    "a command that is wrong": (
        ("--", "localize", "s3://b/in"),
        "camworker localize: the following arguments",
    ),
    "no such command": (("--", "lokalize"), "invalid choice: 'lokalize'"),
    "itself": (("--", "submit", "--", *LOCALIZE), "submit cannot submit itself"),
    "another cluster inside": (("--", *LOCALIZE, "--address", "auto"), "leave out the command's --address"),
    "a local path": (
        ("--", "localize", "photos", "--output", "s3://b/out"),
        "photos is a path of this machine",
    ),
    "a folder that is no clone": (("--working-dir", "{tmp}", "--", *LOCALIZE), "it has no jobs/cli.py"),
    "no cluster": (
        ("--address", "http://127.0.0.1:1", "--", *LOCALIZE),
        "no Ray cluster answers at http://127",
    ),
    "an address of another kind": (
        ("--address", "ray://h:10001", "--", *LOCALIZE),
        "is not the URL of a dashboard",
    ),
    "no port": (("--address", "http://h:port", "--", *LOCALIZE), "is not the URL of a dashboard"),
    "an image without a RayJob": (
        ("--image", "x", "--", *LOCALIZE),
        "--image can only be used with --kuberay",
    ),
    "a clone in a RayJob": (
        ("--kuberay", "--working-dir", "{tmp}", "--", *LOCALIZE),
        "--working-dir cannot be used with --kuberay",
    ),
    "two things to stop": (("--cancel", "ID", "--", *LOCALIZE), "--cancel takes either an ID or, after --,"),
    "no manifest": (("--kuberay", "--manifest", "{tmp}/absent", "--", *LOCALIZE), "No such file"),
    "a resource without an amount": (("--driver-resource", "head", "--", *LOCALIZE), "has to be NAME=N"),
    "nothing to stop": (("--cancel",), "--cancel takes either an ID or, after --,"),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_is_one_clear_line(case: str, tmp_path: Path) -> None:
    arguments, message = BAD_USAGE[case]
    done = camworker("submit", *(word.format(tmp=tmp_path) for word in arguments))
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not done.out


def test_the_help_of_the_inner_command_is_shown() -> None:
    done = camworker("submit", "--", "localize", "--help")
    assert done.code == 0
    assert "usage: camworker localize" in done.out


def test_a_missing_kubectl_is_one_clear_line() -> None:
    done = camworker("submit", "--kuberay", "--apply", "--", *LOCALIZE, environment={"PATH": "/nowhere"})
    assert done.code == 2
    assert "kubectl is not installed" in done.err


class TestRayJobs:
    @pytest.fixture
    def kuberay(self, tmp_path: Path):
        """Run submit --kuberay with a stand-in for kubectl; `jobs` are the RayJobs that it keeps."""
        (tmp_path / "kubectl").write_text(KUBECTL)
        (tmp_path / "kubectl").chmod(0o755)
        search_path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

        class KubeRay:
            path = tmp_path / "jobs.json"

            def __call__(self, *arguments: str) -> Finished:
                options = ("--kuberay", "--namespace", "ours", "--json")
                environment = {"PATH": search_path, "RAYJOBS": str(self.path)}
                return camworker("submit", *options, *arguments, environment=environment)

            @property
            def jobs(self) -> dict[str, str]:
                return json.loads(self.path.read_text())

        return KubeRay()

    def test_a_run_is_created_adopted_and_succeeded_by_the_next(self, kuberay) -> None:
        first = kuberay("--apply", "--", *LOCALIZE)
        assert first.code == 0, first.err
        name = first.json["submission_id"]
        assert first.json == {"submission_id": name, "status": None, "exit_code": None, "adopted": False}
        assert kuberay.jobs == {name: "Running"}
        assert f"kubectl logs --namespace ours --follow job/{name}" in first.err
        adopted = kuberay("--apply", "--", *LOCALIZE)
        assert (adopted.json["submission_id"], adopted.json["adopted"]) == (name, True)
        kuberay.path.write_text(json.dumps({name: "Complete", "other": "Running"}))
        assert kuberay("--apply", "--", *LOCALIZE).json["submission_id"] == f"{name}-2"
        assert kuberay.jobs == {name: "Complete", "other": "Running", f"{name}-2": "Running"}

    def test_a_run_is_stopped_by_its_command_or_its_name(self, kuberay) -> None:
        name = kuberay("--apply", "--", *LOCALIZE).json["submission_id"]
        stopped = kuberay("--cancel", "--", *LOCALIZE)
        assert (stopped.code, stopped.json["submission_id"], kuberay.jobs) == (0, name, {})
        again = kuberay("--cancel", "--", *LOCALIZE)
        assert again.code == 0
        assert "there is nothing to stop" in again.err
        unknown = kuberay("--cancel", name)
        assert unknown.code == 2
        assert f'"{name}" not found' in unknown.err

    def test_the_printed_rayjob_can_be_applied(self) -> None:
        done = camworker("submit", "--kuberay", "--image", "registry/x:1", "--", *LOCALIZE, "--limit", "5")
        assert done.code == 0
        job = yaml.safe_load(done.out)
        assert job["kind"] == "RayJob"
        assert job["spec"]["entrypoint"] == "camworker localize s3://b/in --output s3://b/out --limit 5"
        images = {
            container["image"]
            for group in (
                job["spec"]["rayClusterSpec"]["headGroupSpec"],
                *job["spec"]["rayClusterSpec"]["workerGroupSpecs"],
            )
            for container in group["template"]["spec"]["containers"]
        }
        assert images == {"registry/x:1"}
