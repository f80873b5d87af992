"""Two runs on one output: the second one is refused while the first one holds the lease."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from camworker.dataset import latest
from camworker.ledger.lease import acquire
from camworker.storage.local import LocalStore
from jobs import cli
from support.cli_runner import camworker, photographs, start
from support.fatal_decoder import HANG, install_in_children

OPTIONS = ("--precision", "float32", "--shard-size", "4", "--json")
COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("two") / "in", COUNT)


def test_a_run_is_refused_while_another_one_holds_the_output(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["localize", str(folder), "--output", str(out), *OPTIONS]
    assert cli.main([*command, "--dry-run", "--limit", "1"]) == 0
    recipe = json.loads(capsys.readouterr().out.splitlines()[-1])["recipe"]
    assert not out.exists(), "a dry run takes no lease"

    lease = acquire(LocalStore(out), recipe)
    before = sorted(out.rglob("*"))
    assert cli.main(command) == 4
    streams = capsys.readouterr()
    assert streams.out == ""
    assert re.fullmatch(
        rf"camworker localize: another run holds recipe {recipe} of this output: the run on \S+, "
        rf"process {os.getpid()}, since .* UTC, until .* UTC unless it is renewed\n",
        streams.err,
    )
    assert sorted(out.rglob("*")) == before
    lease.release()


@pytest.mark.ray
@pytest.mark.slow
def test_of_two_concurrent_runs_one_finishes_and_the_other_is_refused_or_adopts(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    both = [start("localize", folder, "--output", out, *OPTIONS) for _ in range(2)]
    ends = [(process.communicate(timeout=240), process.returncode) for process in both]
    codes = sorted(code for _, code in ends)
    assert codes in ([0, 4], [0, 0]), ends
    rows = latest(str(out))
    assert sorted(rows["image_id"].to_pylist()) == [f"{n:04d}.jpg" for n in range(COUNT)]
    assert rows["generation"].to_pylist() == [1] * COUNT
    links = sorted(out.glob("ledger/*/lease/*.json"))
    assert json.loads(links[-1].read_text())["released"] is True


@pytest.mark.ray
@pytest.mark.slow
def test_a_missing_part_is_localized_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("localize", folder, "--output", out, *OPTIONS)
    assert camworker(*command).code == 0
    next(out.glob("predictions/*/part-0001-000001.parquet")).unlink()
    again = camworker(*command)
    assert again.code == 0, again.err
    assert (again.json["generation"], again.json["processed"], again.json["skipped"]) == (2, 4, COUNT - 4)
    rows = latest(str(out)).sort_by("image_id")
    assert rows["generation"].to_pylist() == [1] * 4 + [2] * 4 + [1] * 4
    assert camworker(*command).json["processed"] == 0


@pytest.fixture
def fatal(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which every decoder hangs on a marked image."""
    return {"PYTHONPATH": install_in_children(tmp_path / "site")}


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_ends_a_run_whose_worker_hangs_within_20_seconds(
    tmp_path: Path, fatal: dict[str, str]
) -> None:
    folder, out = photographs(tmp_path / "in", COUNT), tmp_path / "out"
    last = folder / f"{COUNT - 1:04d}.jpg"
    last.write_bytes(last.read_bytes() + HANG)
    process = start("localize", folder, "--output", out, *OPTIONS, "--workers", "1", environment=fatal)
    wait_for(lambda: len(list(out.glob("predictions/*/*.parquet"))) == 2, process.poll)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    print(f"ended after {time.monotonic() - started:.1f} s", file=sys.stderr)
    assert time.monotonic() - started < 20
    assert process.returncode == 3, err
    assert "stopped: SIGTERM" in err


def wait_for(condition: Callable[[], bool], ended: Callable[[], int | None]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert ended() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
