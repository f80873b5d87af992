"""Progress of a command: a live bar on a terminal, elsewhere a line every 30 seconds."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypedDict

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from camworker.training.trainer import EpochRecord

_SECONDS_BETWEEN_LINES: Final = 30.0


class TrainingStatus(TypedDict):
    """The state of a running fine-tuning.

    Attributes:
        done: Steps that are done, over all epochs.
        total: Steps of all epochs.
        loss: Running mean of the loss in the current epoch.
        history: One entry for each finished epoch.
    """

    done: int
    total: int
    loss: float
    history: "list[EpochRecord]"


class _LiveBar:
    """A context manager around a bar of rich; without a terminal there is no bar."""

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


class ImageProgress(_LiveBar):
    """Progress of a run over images.

    Args:
        total: The number of images.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._last_line = time.monotonic()
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
        """Show how many images are done and how many of them failed, both since the start."""
        now = time.monotonic()
        if done and self._first is None:
            self._first = (now, done)  # start-up is not part of the rate
        since, before = self._first or (now, 0)
        rate = (done - before) / (now - since) if done > before else 0.0
        if self._bar:
            self._bar.update(self._task, completed=done, rate=f"{rate:.0f}" if rate else "-", failed=failed)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = f", {format_duration((self._total - done) / rate)} left" if rate else ""
            print(
                f"{done} of {self._total} images, {rate:.1f} images/s, {failed} failed{left}",
                file=sys.stderr,
                flush=True,
            )


class TrainingProgress(_LiveBar):
    """Progress of a fine-tuning: steps, loss and accuracy, and a line for each finished epoch."""

    def __init__(self) -> None:
        self._epochs_shown = 0
        self._last_line = self._first_at = time.monotonic()
        self._first_done = 0
        if sys.stderr.isatty():
            columns = (
                *(BarColumn(), MofNCompleteColumn(), TextColumn("steps, {task.fields[metrics]}")),
                *(TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()),
            )
            self._bar = Progress(*columns, console=RichConsole(stderr=True))
            self._task = self._bar.add_task("", total=None, metrics="starting")

    def update(self, status: TrainingStatus | None) -> None:
        """Show the latest status; None before the first step."""
        if not status:
            return
        history = status["history"]
        for epoch in history[self._epochs_shown :]:
            self._print(_epoch_line(epoch))
        self._epochs_shown = max(self._epochs_shown, len(history))
        now, done, total = time.monotonic(), status["done"], status["total"]
        if not self._first_done:
            self._first_done, self._first_at = done, now
        metrics = f"loss {status['loss']:.4f}"
        if history and (accuracy := history[-1]["validation_accuracy"]) is not None:
            metrics += f", accuracy {100 * accuracy:.1f}%"
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, metrics=metrics)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES and done > self._first_done:
            left = (total - done) * (now - self._first_at) / (done - self._first_done)
            self._print(f"step {done} of {total}, {metrics}, {format_duration(left)} left")

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _epoch_line(epoch: "EpochRecord") -> str:
    text = f"epoch {epoch['epoch']}: loss {epoch['loss']:.4f}"
    if epoch["validation_loss"] is not None and epoch["validation_accuracy"] is not None:
        text += (
            f", held back: loss {epoch['validation_loss']:.4f}, "
            f"accuracy {100 * epoch['validation_accuracy']:.1f}%"
        )
    if epoch["gt_known_localization_accuracy"] is not None:
        text += f", GT-known {100 * epoch['gt_known_localization_accuracy']:.1f}%"
    return f"{text}, {format_duration(epoch['seconds'])}"


def format_duration(seconds: float) -> str:
    """Return a duration for people, such as "45 s", "12 min", "3.2 h" or "5.1 days"."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
