"""The raylet of a busy node is killed: the run completes with all rows."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from chaos.scene import COUNT, Scene, assert_whole
from support.cli_runner import ENVIRONMENT, start
from support.outputs import parts_of

pytest_plugins = ["chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def cluster() -> Iterator["subprocess.Popen[str]"]:
    """A process of two_raylets.py: it prints its address and kills a raylet on request."""
    script = Path(__file__).with_name("two_raylets.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen([sys.executable, script], text=True, env=environment, **pipes) as process:
        yield process
        process.stdin.close()
        process.wait(timeout=60)


def test_one_of_two_raylets_is_killed(
    scene: Scene, undisturbed: pa.Table, cluster: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    out = tmp_path / "out"
    address = cluster.stdout.readline().strip()
    run = start(*scene.arguments(out, "--workers", "2", "--address", address))
    deadline = time.monotonic() + 300
    while len(parts_of(out)) < 4:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline().strip() == "killed"
    committed = parts_of(out)
    _, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert "a node was lost" in err
    assert "ended its worker" not in err, "a shard was counted against its retry budget"
    assert {name: parts_of(out)[name] for name in committed} == committed
    assert_whole(out, undisturbed)
    again = start(*scene.arguments(out))
    output, err = again.communicate(timeout=240)
    assert (again.returncode, f'"skipped": {COUNT}' in output) == (0, True), err
