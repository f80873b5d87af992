"""Show what is planned, done and failed in an output, once or until everything is complete."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from time import sleep
from typing import TYPE_CHECKING, Final

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from camworker.errors import UsageError
from camworker.storage.store import Store
from camworker.storage.uris import open_store
from jobs.console import DONE, Console
from jobs.options import add_out_argument
from jobs.progress import format_duration

if TYPE_CHECKING:
    from camworker.ledger.ledger import Ledger
    from camworker.ledger.progress import Progress
    from camworker.ledger.snapshot import Snapshot

HELP = "show what is planned, done and failed"

# On S3, every poll lists the parts of the unfinished generations: poll only as often as somebody can read.
_SECONDS_BETWEEN_LINES: Final = 30.0
_SECONDS_ON_A_TERMINAL: Final = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker status`."""
    add_out_argument(parser)
    parser.add_argument(
        "--follow", action="store_true", help="show the progress until every generation is complete"
    )


@dataclass(frozen=True, slots=True)
class _GenerationStatus:
    generation: int
    planned: int
    done: int
    failed: dict[str, int]
    removed: int
    shards: int
    parts: int
    complete: bool


@dataclass(frozen=True, slots=True)
class _RecipeStatus:
    recipe: str
    network: str
    box_rule: str
    precision: str
    generations: list[_GenerationStatus]
    complete: bool


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker status`; return its exit code."""
    from camworker.ledger.ledger import Ledger

    store = open_store(args.output)
    if args.follow:
        _follow(store, console)
    statuses = [_recipe_status(Ledger(store, recipe)) for recipe in Ledger.recipes(store)]
    if not statuses:
        raise UsageError(f"{args.output} holds no predictions: localize writes them with --output")
    for status in statuses:
        _print_status(status, console)
    console.result(
        {
            "recipes": [asdict(status) for status in statuses],
            "complete": all(status.complete for status in statuses),
        }
    )
    return DONE


def _print_status(status: _RecipeStatus, console: Console) -> None:
    console.out(f"recipe {status.recipe}: {status.network}, {status.box_rule}, precision {status.precision}")
    for generation in status.generations:
        state = "complete" if generation.complete else "unfinished: run localize again"
        console.out(
            f"  generation {generation.generation}: {generation.done} of {generation.planned} images, "
            f"{sum(generation.failed.values())} failed, {generation.parts} of {generation.shards} parts; "
            f"{state}"
        )
        for name, count in generation.failed.items():
            console.out(f"    {count} {name}")
        if generation.removed:
            console.out(f"    {generation.removed} removed: no longer listed (not a failure)")


def _recipe_status(ledger: "Ledger") -> _RecipeStatus:
    from camworker.ledger.snapshot import Snapshot

    snapshot = Snapshot.load(ledger)
    return _RecipeStatus(
        ledger.recipe,
        snapshot.recipe.network,
        snapshot.recipe.box_rule,
        snapshot.recipe.precision,
        [_generation_status(snapshot, number) for number in snapshot.generations],
        snapshot.complete,
    )


def _generation_status(snapshot: "Snapshot", number: int) -> _GenerationStatus:
    from camworker.ledger.snapshot import count_statuses

    plan, run = snapshot.plan(number), snapshot.runs.get(number)
    keys = [key for (generation, _), key in snapshot.parts.items() if generation == number]
    # A run record holds the counts; those of an unfinished generation are read from its parts.
    images = Counter(run.images) if run else count_statuses(snapshot.ledger, keys)
    return _GenerationStatus(
        generation=number,
        planned=plan.items,
        done=images.total(),
        failed={status: count for status, count in sorted(images.items()) if status not in ("ok", "removed")},
        removed=images["removed"],
        shards=plan.shards,
        parts=len(keys),
        complete=run is not None,
    )


def _follow(store: Store, console: Console) -> None:
    """Show the progress of unfinished generations until all are complete and no run is active.

    On a terminal every generation has a bar; elsewhere each gets a line every 30 seconds.

    Raises:
        OSError: If the store cannot be read.
        CorruptedError: If a part is damaged.
    """
    from camworker.ledger.progress import ProgressMonitor

    monitor = ProgressMonitor(store)
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Bars(*columns, TextColumn("{task.fields[details]}"), console=RichConsole(stderr=True)) as bars:
            tasks: dict[str, TaskID] = {}
            while (unfinished := monitor.poll()) is not None:
                _update_bars(bars, tasks, unfinished)
                sleep(_SECONDS_ON_A_TERMINAL)
    else:
        while (unfinished := monitor.poll()) is not None:
            for progress in unfinished:
                console.err(
                    f"{_name(progress)}: {progress.done} of {progress.planned} images, {_details(progress)}"
                )
            sleep(_SECONDS_BETWEEN_LINES)


def _update_bars(bars: Bars, tasks: dict[str, TaskID], unfinished: "Iterable[Progress]") -> None:
    """Show one bar for each unfinished generation and remove the bars of the others."""
    by_name = {_name(progress): progress for progress in unfinished}
    for name in tasks.keys() - by_name.keys():
        bars.remove_task(tasks.pop(name))
    for name, progress in by_name.items():
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=progress.planned, details="")
        bars.update(tasks[name], completed=progress.done, details=_details(progress))


def _name(progress: "Progress") -> str:
    return f"generation {progress.generation} of {progress.recipe}"


def _details(progress: "Progress") -> str:
    failed = progress.done - progress.images["ok"] - progress.images["removed"]
    details = [f"{progress.parts} of {progress.shards} parts"]
    if progress.images_per_second is not None and progress.seconds_left is not None:
        details += [
            f"{progress.images_per_second:.1f} images/s",
            f"{format_duration(progress.seconds_left)} left",
        ]
    details.append(f"{failed} failed")
    holder = progress.holder
    run = f"on {holder.host}, process {holder.pid}" if holder else "no run is active: run localize again"
    return f"{', '.join(details)}; {run}"
