"""The script of the nightly pod, with a kubectl that plays a cluster."""

import subprocess
from pathlib import Path

import pytest

from support.infra_files import INFRA

SCRIPT = INFRA / "schedule/nightly/nightly.sh"

# Answers each "get" with the next line of the file answers ("!" fails), the last one for ever.
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


def night(folder: Path, *answers: str) -> tuple[int, str, str]:
    """Run the script: its exit code, what it printed, and what it handed to kubectl create."""
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


def test_it_creates_the_job_of_the_night_and_waits_for_its_end(tmp_path: Path) -> None:
    code, _, created = night(
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


def test_it_waits_on_for_a_job_that_is_there(tmp_path: Path) -> None:
    code, _, created = night(tmp_path, "RayJob", "RayJob Running RUNNING", "RayJob Complete SUCCEEDED")
    assert (code, created) == (0, "")


def test_a_cluster_that_does_not_answer_ends_nothing(tmp_path: Path) -> None:
    code, _, created = night(
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
def test_it_ends_as_the_job_did(tmp_path: Path, state: str, message: str, code: int) -> None:
    ended, told, _ = night(tmp_path, "RayJob", state, message)
    assert ended == code
    assert message in told


def test_a_job_that_was_deleted_ends_the_night(tmp_path: Path) -> None:
    code, told, _ = night(tmp_path, "RayJob", "RayJob Running RUNNING", "")
    assert code == 1
    assert "was deleted" in told
