"""Output of a command: progress as lines or as a bar, and JSON apart from text."""

import json
import os
import pty
import subprocess
import sys

import pytest

from jobs import progress as progress_module
from jobs.console import Console
from jobs.progress import ImageProgress, TrainingProgress, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (45, "45 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (172800, "2.0 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_without_a_terminal_progress_is_a_line_every_30_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0, 10, 20, 35, 60, 65, 100])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with ImageProgress(1000) as progress:
        for done, failed in ((0, 0), (100, 1), (250, 2), (500, 2), (550, 3), (900, 4)):
            progress.update(done, failed)
    out, err = capsys.readouterr()
    assert not out
    # The rate counts from 20 s, when 100 were done. Lines follow each other after at least 30 s.
    assert err.splitlines() == [
        "250 of 1000 images, 10.0 images/s, 2 failed, 75 s left",
        "550 of 1000 images, 10.0 images/s, 3 failed, 45 s left",
        "900 of 1000 images, 10.0 images/s, 4 failed, 10 s left",
    ]


def test_on_a_terminal_progress_is_a_bar() -> None:
    program = (
        "from jobs.progress import ImageProgress\n"
        "with ImageProgress(10) as progress: progress.update(3, 1); progress.update(10, 2)"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=os.environ | {"TERM": "xterm"}):
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:
            pass  # the program has ended and closed the terminal
    os.close(ours)
    assert b"10/10" in shown
    assert b"2 failed" in shown


def test_training_progress_has_a_line_per_epoch_and_some_for_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    figures = {"validation_loss": 0.5, "validation_accuracy": 0.75, "seconds": 41.0}
    first = {"epoch": 1, "loss": 0.6, **figures, "gt_known_localization_accuracy": None}
    second = {"epoch": 2, "loss": 0.4, **figures, "gt_known_localization_accuracy": 0.8}
    with TrainingProgress() as progress:
        for at, done, loss, history in (
            (5, 0, 0.0, None),
            (10, 1, 0.9, []),
            (25, 4, 0.8, []),
            (40, 7, 0.7, []),
            (50, 10, 0.6, [first]),
            (60, 20, 0.4, [first, second]),
        ):
            now[0] = at
            news = {"done": done, "total": 20, "loss": loss, "history": history}
            progress.update(None if history is None else news)
    # Steps are counted from the first seen, at 10 s: six in 30 s, so that 13 more take 65 s.
    assert capsys.readouterr().err.splitlines() == [
        "step 7 of 20, loss 0.7000, 65 s left",
        "epoch 1: loss 0.6000, held back: loss 0.5000, accuracy 75.0%, 41 s",
        "epoch 2: loss 0.4000, held back: loss 0.5000, accuracy 75.0%, GT-known 80.0%, 41 s",
    ]


def test_with_json_text_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=True)
    console.out("for people")
    console.result({"rows": 1, "rate": None})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rows": 1, "rate": None}
    assert err == "for people\n"


def test_json_holds_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Console(as_json=True).result({"rate": float("nan")})
