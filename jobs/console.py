"""What a command says and how it ends: text, JSON, progress, exit codes."""

import json
import sys
import time
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

DONE: Final = 0
UNEXPECTED: Final = 1
USAGE: Final = 2
INCOMPLETE: Final = 3
HELD: Final = 4
VERIFICATION_FAILED: Final = 5

_SECONDS_BETWEEN_LINES: Final = 30.0


class Console:
    """Text for people goes to standard output, or to standard error when that is kept for JSON."""

    def __init__(self, *, as_json: bool, verbose: bool = False) -> None:
        self.as_json = as_json
        self.verbose = verbose

    def say(self, text: str = "") -> None:
        """A line of the result."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def note(self, text: str) -> None:
        """A line about the work, on standard error."""
        print(text, file=sys.stderr, flush=True)

    def result(self, content: dict[str, Any]) -> None:
        """The one JSON object of --json: call it last."""
        if self.as_json:
            print(json.dumps(content, allow_nan=False), flush=True)


class _Live:
    """What is shown while work is done: a bar on a terminal, None elsewhere."""

    _bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


class ImageProgress(_Live):
    """Images done: a live bar on a terminal, elsewhere a line every 30 s."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started = self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        if sys.stderr.isatty():
            columns = (
                *(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]} images/s")),
                *(TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()),
                TextColumn("{task.fields[failed]} failed"),
            )
            self._bar = Progress(*columns, console=RichConsole(stderr=True))
            self._task = self._bar.add_task("", total=total, rate="-", failed=0)

    def update(self, done: int, failed: int) -> None:
        """Show counts since the start."""
        now = time.monotonic()
        if done and self._first is None:
            self._first = (now, done)  # start-up is not part of the rate
        since, before = self._first or (now, 0)
        rate = (done - before) / (now - since) if done > before else 0.0
        if self._bar:
            self._bar.update(self._task, completed=done, rate=f"{rate:.0f}" if rate else "-", failed=failed)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = f", {duration((self._total - done) / rate)} left" if rate else ""
            print(
                f"{done} of {self._total} images, {rate:.1f} images/s, {failed} failed{left}",
                file=sys.stderr,
                flush=True,
            )


class TrainingProgress(_Live):
    """Steps of a training: a live bar with loss, accuracy and ETA, or a line every 30 s; a line an epoch."""

    def __init__(self) -> None:
        self._told = 0
        self._last_line = self._first_at = time.monotonic()
        self._first_done = 0
        if sys.stderr.isatty():
            columns = (
                *(BarColumn(), MofNCompleteColumn(), TextColumn("steps, {task.fields[said]}")),
                *(TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()),
            )
            self._bar = Progress(*columns, console=RichConsole(stderr=True))
            self._task = self._bar.add_task("", total=None, said="starting")

    def update(self, news: dict[str, Any]) -> None:
        """Show the latest: done and total steps, loss, history (an entry for each finished epoch)."""
        if not news:
            return
        history = news["history"]
        for epoch in history[self._told :]:
            self._line(_epoch_line(epoch))
        self._told = max(self._told, len(history))
        now, done, total = time.monotonic(), news["done"], news["total"]
        if not self._first_done:
            self._first_done, self._first_at = done, now
        said = f"loss {news['loss']:.4f}"
        if history and history[-1]["validation_accuracy"] is not None:
            said += f", accuracy {100 * history[-1]['validation_accuracy']:.1f}%"
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, said=said)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES and done > self._first_done:
            left = (total - done) * (now - self._first_at) / (done - self._first_done)
            self._line(f"step {done} of {total}, {said}, {duration(left)} left")

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _epoch_line(epoch: dict[str, Any]) -> str:
    text = f"epoch {epoch['epoch']}: loss {epoch['loss']:.4f}"
    if epoch["validation_loss"] is not None:
        text += (
            f", held back: loss {epoch['validation_loss']:.4f}, "
            f"accuracy {100 * epoch['validation_accuracy']:.1f}%"
        )
    if epoch["gt_known_localization_accuracy"] is not None:
        text += f", GT-known {100 * epoch['gt_known_localization_accuracy']:.1f}%"
    return f"{text}, {duration(epoch['seconds'])}"


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3.2 h, 5.1 days."""
    for size, unit in ((86400 * 2, "days"), (3600 * 2, "h"), (120, "min")):
        if seconds >= size:
            per = {"days": 86400, "h": 3600, "min": 60}[unit]
            return f"{seconds / per:.1f} {unit}" if unit != "min" else f"{seconds / per:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
