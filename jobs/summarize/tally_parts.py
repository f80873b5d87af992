"""Tallies of all parts of an output, merged: made in Ray tasks, or here where there are few."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from camworker.errors import CamworkerError
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.ledger.records import Part
from camworker.ledger.snapshot import Snapshot, read_latest
from camworker.storage.uris import open_store
from jobs.console import Console
from jobs.progress import ImageProgress

if TYPE_CHECKING:
    from camworker.metrics.summary import TruthFacts
    from camworker.metrics.tally import EvaluationConfig, Tally

HERE_BYTES: Final = 8 * 2**20  # less is tallied in this process: starting Ray would take longer
_AHEAD: Final = 2  # parts queued for each core

# (image id, label) of the images that a report shows -> their true boxes, float32 [N, 4].
ShownBoxes = dict[tuple[str, int], Any]


def tally_all(
    args: argparse.Namespace,
    console: Console,
    snapshot: Snapshot,
    measure: "EvaluationConfig",
    tally: "Tally",
) -> "tuple[TruthFacts, ShownBoxes]":
    """Merge the tallies of all parts into tally."""
    parts, recorded = snapshot.parts, snapshot.inventory.recorded
    size = sum(snapshot.inventory.listed.values())
    recipe, name = snapshot.recipe, snapshot.ledger.recipe
    if not args.address and size <= HERE_BYTES:
        truth = _read_truth(args, recipe)
        later = snapshot.later_rows()
        for place, key in parts.items():
            record = recorded.get(place)
            tally.merge(_tally_part(args.output, name, key, record, later, truth, measure))
        return _facts(truth, tally)

    import ray
    from ray.exceptions import RayTaskError

    from jobs.ray_cluster import connected

    task = ray.remote(num_cpus=1)
    with connected(args.address, verbose=console.verbose):
        try:
            # The truth and the later rows lie in Ray's store, each once a machine, and never in here.
            truth = task(_read_truth).remote(args, recipe)
            later = task(Snapshot.later_rows).remote(snapshot)
            remote = task(_tally_part)
            calls = (
                remote.remote(args.output, name, key, recorded.get(place), later, truth, measure)
                for place, key in parts.items()
            )
            with ImageProgress(snapshot.planned) as progress:
                for part in _in_any_order(calls, args.workers):
                    tally.merge(part)
                    progress.update(tally.images, sum(tally.failed.values()))
            return ray.get(task(_facts).remote(truth, tally))
        except RayTaskError as error:
            # Ray's own error shows as a traceback of many lines.
            if isinstance(error.cause, CamworkerError):
                raise error.cause from None
            raise


def _tally_part(
    output: str,
    recipe: str,
    key: str,
    record: Part | None,
    later: Any,
    truth: Any,
    measure: "EvaluationConfig",
) -> "Tally":
    """One part's tally: what a Ray task does. record: what every byte of the part is compared with."""
    from camworker.metrics.tally import Tally

    rows = read_latest(Ledger(open_store(output), recipe), key, later, measure.columns, record)
    return Tally().update(rows, truth, measure)


def _facts(truth: Any, tally: "Tally") -> "tuple[TruthFacts, ShownBoxes]":
    """What is to be said of the truth, and of it what the best and worst images show."""
    from camworker.metrics.summary import TruthFacts

    shown = {
        (image_id, label): truth.boxes_of(image_id, label)
        for _, _, image_id, label in (*tally.best, *tally.worst)
    }
    return TruthFacts.of(truth, tally.seen), shown


def _in_any_order(calls: Iterator[Any], workers: int | None) -> Iterator[Any]:
    """The results of remote calls as they come, so many running that no worker waits."""
    import ray

    most = workers or _AHEAD * int(ray.cluster_resources().get("CPU", 1))
    running: list[Any] = []
    for call in calls:
        running.append(call)
        if len(running) >= most:
            done, running = ray.wait(running)
            yield ray.get(done[0])
    while running:
        done, running = ray.wait(running)
        yield ray.get(done[0])


def _read_truth(args: argparse.Namespace, recipe: Recipe) -> Any:
    from camworker.metrics.ground_truth.truth import read_truth

    return read_truth(
        args.truth,
        recipe.classes,
        args.truth_boxes,
        by=args.truth_classes,
        masks=args.masks,
        exclude=args.exclude,
    )
