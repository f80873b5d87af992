"""status --follow: how far what is unfinished is, again and again, until it is complete."""

import sys
from collections.abc import Iterable
from time import sleep
from typing import TYPE_CHECKING, Final

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from camworker.storage.store import Store
from jobs.console import Console, duration

if TYPE_CHECKING:
    from camworker.ledger.progress import Progress

# In S3 a look costs a listing of the parts: no more often than somebody can read it.
_SECONDS_BETWEEN_LINES: Final = 30.0
_SECONDS_ON_A_TERMINAL: Final = 5.0


def follow(store: Store, console: Console) -> None:
    """Look and show until all is complete and no run is at work any more: a bar for each generation.

    Without a terminal, a line for each every 30 s. Raises OSError, DamagedError where a part is.
    """
    from camworker.ledger.progress import ProgressMonitor

    follower = ProgressMonitor(store)
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bars(*columns, TextColumn("{task.fields[said]}"), console=RichConsole(stderr=True)) as bars:
            tasks: dict[str, TaskID] = {}
            while (seen := follower.look()) is not None:
                _show(bars, tasks, seen)
                sleep(_SECONDS_ON_A_TERMINAL)
    else:
        while (seen := follower.look()) is not None:
            for progress in seen:
                console.note(
                    f"{_name(progress)}: {progress.done} of {progress.planned} images, {_said(progress)}"
                )
            sleep(_SECONDS_BETWEEN_LINES)


def _show(bars: Bars, tasks: dict[str, TaskID], seen: "Iterable[Progress]") -> None:
    """A bar for each that is unfinished; those of others end."""
    now = {_name(progress): progress for progress in seen}
    for name in tasks.keys() - now.keys():
        bars.remove_task(tasks.pop(name))
    for name, progress in now.items():
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=progress.planned, said="")
        bars.update(tasks[name], completed=progress.done, said=_said(progress))


def _name(progress: "Progress") -> str:
    return f"generation {progress.generation} of {progress.recipe}"


def _said(progress: "Progress") -> str:
    failed = progress.done - progress.images["ok"] - progress.images["removed"]
    facts = [f"{progress.parts} of {progress.shards} parts"]
    if progress.images_per_second is not None and progress.seconds_left is not None:
        facts += [f"{progress.images_per_second:.1f} images/s", f"{duration(progress.seconds_left)} left"]
    facts.append(f"{failed} failed")
    holder = progress.holder
    work = f"on {holder.host}, process {holder.pid}" if holder else "no run is at work: run localize again"
    return f"{', '.join(facts)}; {work}"
