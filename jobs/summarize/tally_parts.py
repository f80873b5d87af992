"""The tally of all parts of an output, made in Ray tasks or, if the output is small, in this process."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import CamworkerError
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Part
from camworker.ledger.snapshot import Snapshot, read_latest
from camworker.metrics.ground_truth.truth import Truth, read_truth
from camworker.metrics.summary import TruthFacts
from camworker.metrics.tally import EvaluationConfig, Tally
from camworker.storage.uris import Connections, open_store
from jobs.progress import ImageProgress

if TYPE_CHECKING:
    from camworker.metrics.ground_truth.annotations import By, Corners

LOCAL_BYTES: Final = 8 * 2**20  # smaller outputs are tallied in this process: starting Ray would take longer
_QUEUED_PER_CORE: Final = 2  # parts


@dataclass(frozen=True)
class TruthSource:
    """Where ground truth is read, see `read_truth` for the attributes."""

    path: str
    classes: Classes
    corners: "Corners"
    by: "By"
    masks: str | None
    exclude: str | None

    def read(self) -> Truth:
        """Read the ground truth."""
        return read_truth(
            self.path, self.classes, self.corners, by=self.by, masks=self.masks, exclude=self.exclude
        )


@dataclass(frozen=True)
class TalliedTruth:
    """What is kept of the ground truth once all parts are tallied.

    Attributes:
        facts: Facts for the summary.
        boxes: True boxes, float32 [N, 4], of the image ids and labels that a report shows.
    """

    facts: TruthFacts
    boxes: Mapping[tuple[str, int], NDArray[np.float32]]


def tally_parts(
    output: str,
    snapshot: Snapshot,
    source: TruthSource,
    config: EvaluationConfig,
    *,
    workers: int | None,
    address: str | None,
    verbose: bool,
) -> tuple[Tally, TalliedTruth]:
    """Tally all parts of a recipe.

    Args:
        output: Where the output is.
        snapshot: What the recipe holds in that output.
        source: Where the ground truth is read.
        config: What is evaluated.
        workers: Number of parts that are tallied at a time; None for as many as the cluster has cores for.
        address: Ray cluster to join; None to start one here if the output is large.
        verbose: Whether to show the logs of the workers.
    """
    parts, recorded = snapshot.parts, snapshot.inventory.recorded
    recipe, size = snapshot.ledger.recipe, sum(snapshot.inventory.listed.values())
    tally = Tally()
    if not address and size <= LOCAL_BYTES:
        truth = source.read()
        later = snapshot.later_rows()
        for part, key in parts.items():
            tally.merge(_tally_part(output, recipe, key, recorded.get(part), later, truth, config))
        return tally, _keep(truth, tally)

    import ray
    from ray.exceptions import RayTaskError

    from jobs.ray_cluster import connected

    task = ray.remote(num_cpus=1)
    with connected(address, verbose=verbose):
        try:
            # The truth and the later rows stay in Ray's object store, once per machine, and never come here.
            truth_ref = task(TruthSource.read).remote(source)
            later_ref = task(Snapshot.later_rows).remote(snapshot)
            remote = task(_tally_part)
            calls = (
                remote.remote(output, recipe, key, recorded.get(part), later_ref, truth_ref, config)
                for part, key in parts.items()
            )
            with ImageProgress(snapshot.planned) as progress:
                for part_tally in _as_completed(calls, workers):
                    tally.merge(part_tally)
                    progress.update(tally.images, sum(tally.failed.values()))
            return tally, ray.get(task(_keep).remote(truth_ref, tally))
        except RayTaskError as error:
            # Ray's own error is shown as a traceback of many lines.
            if isinstance(error.cause, CamworkerError):
                raise error.cause from None
            raise


@functools.cache
def _connections() -> Connections:
    """Return the connections of this process: a Ray worker runs many tasks."""
    return Connections()


def _tally_part(
    output: str,
    recipe: str,
    key: str,
    record: Part | None,
    later: Any,
    truth: Truth,
    config: EvaluationConfig,
) -> Tally:
    """Tally one part. If it has a record, every byte of the part is compared with that."""
    rows = read_latest(Ledger(open_store(output, _connections()), recipe), key, later, config.columns, record)
    return Tally().update(rows, truth, config)


def _keep(truth: Truth, tally: Tally) -> TalliedTruth:
    boxes = {
        (image_id, label): truth.boxes_of(image_id, label)
        for _, _, image_id, label in (*tally.best, *tally.worst)
    }
    return TalliedTruth(TruthFacts.from_truth(truth, tally.seen), boxes)


def _as_completed(calls: Iterator[Any], workers: int | None) -> Iterator[Any]:
    """Yield the results of remote calls as they complete, with enough of them queued to keep workers busy."""
    import ray

    limit = workers or _QUEUED_PER_CORE * int(ray.cluster_resources().get("CPU", 1))
    running: list[Any] = []
    for call in calls:
        running.append(call)
        if len(running) >= limit:
            done, running = ray.wait(running)
            yield ray.get(done[0])
    while running:
        done, running = ray.wait(running)
        yield ray.get(done[0])
