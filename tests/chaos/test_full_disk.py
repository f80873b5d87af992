"""A disk that fills up and a write that fails: no part is incomplete, and the run can be resumed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chaos.incidents import Incident, in_processes
from chaos.scene import SHARDS, SIZE, Scene, assert_whole
from support.cli_runner import camworker
from support.outputs import parts_of

pytest_plugins = ["chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with space for the plan and some parts."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250k", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def assert_parts_are_complete(out: Path) -> None:
    for path in out.glob("predictions/*/*"):
        assert pq.read_table(path).num_rows == SIZE


def test_a_full_disk(scene: Scene, undisturbed: pa.Table, small_disk: Path) -> None:
    out = small_disk / "out"
    stopped = scene.localize(out, "--workers", "1")
    assert stopped.code == 3, stopped.err
    assert "No space left on device" in stopped.err
    assert "Traceback" not in stopped.err
    committed = parts_of(out)
    assert 0 < len(committed) < SHARDS
    assert_parts_are_complete(out)
    assert not any(out.glob(".scratch/*")), "drafts would keep the disk full"

    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    done = scene.localize(out)
    assert done.code == 0, done.err
    assert done.json["skipped"] == len(committed) * SIZE
    assert {name: parts_of(out)[name] for name in committed} == committed
    assert_whole(out, undisturbed)
    assert camworker("verify", out).code == 0


def test_no_space_for_the_plan(scene: Scene, small_disk: Path) -> None:
    out = small_disk / "out"
    (small_disk / "others").write_bytes(bytes(245 * 1024))
    stopped = scene.localize(out)
    assert stopped.code == 3, stopped.err
    assert "No space left on device; run the same command again to resume" in stopped.err
    assert "Traceback" not in stopped.err
    assert not parts_of(out)


def test_a_failed_write_is_retried(scene: Scene, undisturbed: pa.Table, tmp_path: Path) -> None:
    """The draft of a part is written but cannot be committed: the shard runs again."""
    out = tmp_path / "out"
    full = Incident(
        "camworker.storage.local",
        "os.link",
        tmp_path / "failed",
        argument="predictions/",
        call=3,
        action="disk full",
    )
    done = scene.localize(out, environment=in_processes(full))
    assert (done.code, full.happened) == (0, True), done.err
    assert done.err.count("failed: OSError: [Errno 28] No space left on device") == 1
    assert not any(out.glob(".scratch/*"))
    assert_whole(out, undisturbed)
