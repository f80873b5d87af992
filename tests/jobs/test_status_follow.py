"""status --follow: lines or a bar until everything is complete, read from the ledger only."""

import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from camworker.inference.localizer import Localizer
from camworker.inputs import ReadPolicy
from camworker.ledger.lease import acquire
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import write_generation
from camworker.ledger.records import Plan
from camworker.storage.local import LocalStore
from jobs import cli, status
from support.cli_runner import start
from support.factories import photograph, photographs_of, run
from support.recipes import make_recipe
from support.run_records import make_run_record

RECIPE = "r0123456789ab"


@pytest.fixture
def unfinished(tmp_path: Path, folder: Path) -> tuple[Ledger, Plan]:
    """Eleven images planned in shards of four; one of them is broken."""
    (folder / "03.png").write_bytes(photograph(3)[:100])
    ledger = Ledger(LocalStore(tmp_path / "out"), RECIPE)
    ledger.write_recipe(make_recipe())
    return ledger, write_generation(ledger, 1, photographs_of(folder), 4, ReadPolicy())


def finish(ledger: Ledger) -> None:
    ledger.commit_run(replace(make_run_record(ledger, 1), images={"ok": 10, "decode_error": 1}))


def test_without_a_terminal_progress_is_lines_until_everything_is_complete(
    unfinished: tuple[Ledger, Plan],
    tmp_path: Path,
    tiny_localizer: Localizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger, plan = unfinished
    waits: list[float] = []

    def work_on(seconds: float) -> None:
        """Do what another process would do while status sleeps."""
        waits.append(seconds)
        if len(waits) <= plan.shards:
            run(ledger, plan, tiny_localizer, len(waits) - 1)
        elif len(waits) == plan.shards + 1:
            finish(ledger)
        else:
            lease.release()

    monkeypatch.setattr(status, "sleep", work_on)
    lease = acquire(ledger.store, RECIPE)
    assert cli.main(["status", str(tmp_path / "out"), "--follow", "--json"]) == 0
    out, err = capsys.readouterr()
    assert waits == [30.0] * 5
    speed, time = r"\d+\.\d images/s", r"[\d.]+ (s|min|h|days) left"
    name, at = f"generation 1 of {RECIPE}", rf"on \S+, process {os.getpid()}"
    expected = (
        f"{name}: 0 of 11 images, 0 of 3 parts, 0 failed; {at}",
        f"{name}: 4 of 11 images, 1 of 3 parts, 1 failed; {at}",
        f"{name}: 8 of 11 images, 2 of 3 parts, {speed}, {time}, 1 failed; {at}",
        f"{name}: 11 of 11 images, 3 of 3 parts, {speed}, {time}, 1 failed; {at}",
        f"recipe {RECIPE}: tiny, cam20, precision float32",
        "  generation 1: 11 of 11 images, 1 failed, 3 of 3 parts; complete",
        "    1 decode_error",
    )
    lines = err.splitlines()
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line)
    assert '"complete": true' in out


def test_a_complete_output_is_reported_at_once(
    unfinished: tuple[Ledger, Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(unfinished[0])
    assert cli.main(["status", str(tmp_path / "out"), "--follow"]) == 0
    assert "generation 1: 11 of 11 images" in capsys.readouterr().out


def test_an_output_without_predictions_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path), "--follow"]) == 2
    assert "holds no predictions" in capsys.readouterr().err


def test_an_interrupted_status_exits_with_3(unfinished: tuple[Ledger, Plan], tmp_path: Path) -> None:
    watching = start("status", tmp_path / "out", "--follow")
    assert watching.stderr
    line = watching.stderr.readline()
    assert line.endswith("0 of 3 parts, 0 failed; no run is active: run localize again\n")
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=30)
    assert watching.returncode == 3
    assert (out, err) == ("", "camworker status: interrupted\n")


def test_on_a_terminal_progress_is_a_bar(
    unfinished: tuple[Ledger, Plan], tmp_path: Path, tiny_localizer: Localizer
) -> None:
    ledger, plan = unfinished
    for shard in (0, 1):
        run(ledger, plan, tiny_localizer, shard)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jobs.cli", "status", tmp_path / "out", "--follow"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment) as watching:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
                if b"2 of 3 parts, 1 failed" in shown:
                    finish(ledger)
        except OSError:
            pass  # the program has ended and closed the terminal
        assert watching.stdout
        text = watching.stdout.read()
    os.close(ours)
    assert watching.returncode == 0
    assert b"8/11" in shown
    assert b"complete" in text
