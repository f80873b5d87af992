"""The script of the nightly pod, run with a fake kubectl."""

import subprocess
from pathlib import Path

import pytest

from support.infra_files import INFRA

SCRIPT = INFRA / "schedule/nightly/nightly.sh"

# The fake kubectl answers each "get" with the next line of the file "answers", and repeats the last one.
# With the answer "!" it fails.
KUBECTL = """#!/bin/sh
cd "$(dirname "$0")" || exit 9
echo "$*" >> calls
case "$1" in
get)
    answer=$(head -n 1 answers)
    [ "$(wc -l < answers)" -gt 1 ] && sed -i.bak 1d answers
    [ "$answer" = "!" ] && exit 1
    printf '%s' "$answer" ;;
patch) echo patched ;;
create) cat > created ;;
esac
"""


def run_night(folder: Path, *answers: str) -> tuple[int, str, str]:
    """Run the script and return its exit code, its output, and the input of `kubectl create`."""
    kubectl = folder / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    (folder / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    done = subprocess.run(
        ["sh", str(SCRIPT), "/rayjob/rayjob.yaml"],
        env={
            "PATH": f"{folder}:/usr/bin:/bin",
            "JOB_NAME": "camworker-nightly-1",
            "JOB_UID": "u",
            "PAUSE": "0",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    created = folder / "created"
    return done.returncode, done.stdout, created.read_text() if created.exists() else ""


def test_creates_a_ray_job_and_waits_for_its_end(tmp_path: Path) -> None:
    code, _, created = run_night(
        tmp_path,
        "",
        "RayJob  ",
        "RayJob Running RUNNING",
        "RayJob Retrying FAILED",
        "RayJob Complete SUCCEEDED",
    )
    assert code == 0
    assert created == "patched\n"
    calls = (tmp_path / "calls").read_text()
    assert '"path": "/metadata/name", "value": "camworker-nightly-1-run"' in calls
    assert '"kind": "Job", "name": "camworker-nightly-1", "uid": "u"' in calls
    assert calls.count("get rayjobs.ray.io/camworker-nightly-1-run ") == 5


def test_waits_for_an_existing_ray_job(tmp_path: Path) -> None:
    code, _, created = run_night(tmp_path, "RayJob", "RayJob Running RUNNING", "RayJob Complete SUCCEEDED")
    assert (code, created) == (0, "")


def test_keeps_waiting_while_the_cluster_does_not_answer(tmp_path: Path) -> None:
    code, _, created = run_night(
        tmp_path, "!", "RayJob", "!", "RayJob Running ", "!", "RayJob Complete SUCCEEDED"
    )
    assert (code, created) == (0, "")


@pytest.mark.parametrize(
    ("state", "message", "code"),
    [
        ("RayJob Failed FAILED", "Job entrypoint command failed with exit code 3, last available logs", 3),
        ("RayJob Failed FAILED", "Job entrypoint command failed with exit code 4. No logs available.", 4),
        ("RayJob Failed RUNNING", "The RayJob has passed the activeDeadlineSeconds", 1),
        ("RayJob ValidationFailed ", "The RayJob spec is invalid", 1),
        ("RayJob Complete STOPPED", "Job was stopped", 1),
    ],
)
def test_exits_with_the_exit_code_of_the_job(tmp_path: Path, state: str, message: str, code: int) -> None:
    exit_code, output, _ = run_night(tmp_path, "RayJob", state, message)
    assert exit_code == code
    assert message in output


def test_deleted_ray_job_is_a_failure(tmp_path: Path) -> None:
    code, output, _ = run_night(tmp_path, "RayJob", "RayJob Running RUNNING", "")
    assert code == 1
    assert "was deleted" in output
