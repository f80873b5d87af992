"""A run that is killed or stopped half way: committed parts stay valid and the next run does the rest."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest

from camworker.dataset import latest
from support.cli_runner import camworker, photographs, start
from support.outputs import assert_same_rows, parts_of, wait_until_nothing_writes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COUNT, SHARD = 96, 8
OPTIONS = ("--precision", "float32", "--shard-size", str(SHARD), "--batch-size", "4", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("resume") / "in", COUNT)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert camworker("localize", folder, "--output", out, *OPTIONS).code == 0
    return latest(str(out)).sort_by("image_id")


def run_until_parts(folder: Path, out: Path, parts: int) -> "subprocess.Popen[str]":
    """Start localize and wait until it has committed some of its parts."""
    process = start("localize", folder, "--output", out, *OPTIONS)
    deadline = time.monotonic() + 120
    while len(parts_of(out)) < parts:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_killed_run_resumes_without_computing_anything_twice(
    folder: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = run_until_parts(folder, out, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until_nothing_writes(out)
    committed = parts_of(out)
    assert 3 <= len(committed) < COUNT // SHARD
    status = camworker("status", out, "--json").json
    assert not status["complete"]
    assert status["recipes"][0]["generations"][0]["done"] == len(committed) * SHARD

    dry = camworker("localize", folder, "--output", out, *OPTIONS, "--dry-run")
    assert dry.json["planned"] == COUNT - len(committed) * SHARD

    again = camworker("localize", folder, "--output", out, *OPTIONS)
    assert again.code == 0, again.err
    assert again.json["skipped"] == len(committed) * SHARD
    assert again.json["processed"] == COUNT - len(committed) * SHARD
    assert {name: parts_of(out)[name] for name in committed} == committed
    assert_same_rows(latest(str(out)).sort_by("image_id"), undisturbed)
    assert camworker("localize", folder, "--output", out, *OPTIONS).json["processed"] == 0


@pytest.mark.slow
def test_sigterm_drains_and_exits_with_3(folder: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = run_until_parts(folder, out, 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "stopped: SIGTERM; run the same command again to resume" in err
    assert camworker("localize", folder, "--output", out, *OPTIONS).code == 0
    assert_same_rows(latest(str(out)).sort_by("image_id"), undisturbed)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(folder: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = run_until_parts(folder, out, 2)
    workers = _workers_of(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    stdout, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result = json.loads(stdout.splitlines()[-1])
    # A worker that dies between its commit and its answer leaves a part that the run adopts.
    assert result["skipped"] in {SHARD * adopted for adopted in range(len(workers) + 1)}
    assert result["processed"] == COUNT - result["skipped"]
    assert_same_rows(latest(str(out)).sort_by("image_id"), undisturbed)


def _workers_of(driver: int) -> list[int]:
    """Return the process ids of the workers of a driver."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in table.stdout.splitlines()[1:]]
    family = {driver}
    for _ in range(4):
        family |= {int(pid) for pid, parent, _ in rows if int(parent) in family}
    actors = [int(pid) for pid, _, args in rows if int(pid) in family and args.startswith("ray::Worker")]
    assert actors, "no actor is running"
    return actors
