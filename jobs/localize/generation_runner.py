"""Run the shards of a generation to their end and write its run record."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from camworker.inference.shard import ShardResult
from camworker.inference.stage_timer import StageTimes
from camworker.ledger.lease import Lease
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Part, Plan, RunRecord
from jobs.console import Console
from jobs.driver.driver import Driver
from jobs.driver.json_logs import LOG, log_context
from jobs.driver.outcome import Outcome
from jobs.driver.telemetry import DriverMetrics
from jobs.localize.worker import LocalizeWorker, WorkerSettings, rounded
from jobs.progress import ImageProgress, format_duration
from jobs.ray_cluster import Workers

_log: Final = LOG.getChild("driver")

_MIN_IMAGES_FOR_ERROR_RATE: Final = 100  # a few failures among the first images must not stop a run
_LOGGED: Final = ("images", "seconds", "stages", "read_bytes", "failed_attempts", "restarts")


@dataclass
class RunSummary:
    """What one run of localize did.

    Attributes:
        recipe: Id of the recipe.
        output: The output.
        generation: The latest generation; None if there is none.
        skipped: Images that earlier runs had localized.
        planned: Items of the generations that this run worked on.
        processed: Images that this run localized.
        ok: Processed images without a failure.
        failed: Processed images with a failure, by status.
        removed: Rows with the status "removed", which are planned but not processed.
        parts: Parts that this run committed.
        seconds: Duration of the run.
        images_per_second: Throughput of the latest generation; None if nothing was processed.
    """

    recipe: str
    output: str
    generation: int | None
    skipped: int
    planned: int = 0
    processed: int = 0
    ok: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    removed: int = 0
    parts: int = 0
    seconds: float = 0.0
    images_per_second: float | None = None

    def count(self, plan: Plan, outcome: Outcome[ShardResult], seconds: float) -> None:
        """Add a generation; images of parts that an earlier run had committed count as skipped."""
        new_parts = [done.part for done in outcome.done.values() if done.seconds]
        new_images = _count_images(new_parts)
        all_images = _count_images(done.part for done in outcome.done.values())
        self.generation = plan.generation
        self.planned += plan.items
        self.removed += new_images.pop("removed", 0)
        self.skipped += all_images.total() - all_images["removed"] - new_images.total()
        self.processed += new_images.total()
        self.ok += new_images.pop("ok", 0)
        self.failed = dict(Counter(self.failed) + new_images)
        self.parts += len(new_parts)
        if new_parts:
            # If no worker finished a second batch, there is no steady state to measure.
            rate = outcome.images_per_second or sum(part.rows for part in new_parts) / seconds
            self.images_per_second = round(rate, 2)

    def print(self, console: Console) -> None:
        """Print the summary for people."""
        failed = "".join(f", {count} {status}" for status, count in sorted(self.failed.items()))
        removed = f"{self.removed} removed; " if self.removed else ""
        console.out(
            f"{self.processed} images localized: {self.ok} ok{failed}; {removed}{self.skipped} were done "
            f"before; {format_duration(self.seconds)}"
        )
        console.out(f"recipe {self.recipe} in {self.output}")


@dataclass
class Runner:
    """Completes generations one after another.

    Attributes:
        ledger: The ledger of the recipe.
        lease: The lease of this run.
        settings: The settings of the workers.
        workers: Number and resources of the workers.
        max_error_rate: The fraction of images that may fail.
        console: Prints progress and warnings.
        summary: Counts what this run does.
        stopped: Whether the work was ended by a signal, by the error rate, or by another run that took over
            the lease.
    """

    ledger: Ledger
    lease: Lease
    settings: WorkerSettings
    workers: Workers
    max_error_rate: float
    console: Console
    summary: RunSummary
    stopped: bool = False

    def complete(self, plan: Plan) -> bool:
        """Run the shards of a generation and write its run record; return whether it is complete."""
        if self.stopped:
            return False
        with log_context(recipe=plan.recipe, generation=plan.generation):
            return self._complete(plan)

    def _complete(self, plan: Plan) -> bool:
        self._print(
            f"generation {plan.generation}: {plan.items} images in {plan.shards} shards", logging.INFO
        )
        started = time.monotonic()
        outcome = self._run(plan)
        seconds = time.monotonic() - started
        self.summary.count(plan, outcome, seconds)
        if reason := outcome.runtime_info.get("compilation", "").partition("off: ")[2]:
            self.console.err(f"the network was not compiled and ran slower than it could: {reason}")
        for (_, shard), reason in outcome.lost.items():
            with log_context(shard=shard):
                self._print(f"shard {shard} of generation {plan.generation} could not be done: {reason}")
        if outcome.stopped:
            self._print(f"stopped: {outcome.stopped}; run the same command again to resume")
            self.stopped = True
        if outcome.stopped or outcome.lost:
            return False
        record = _run_record(plan, outcome, seconds)
        self.ledger.commit_run(record)
        _log.info("generation done", extra={name: getattr(record, name) for name in _LOGGED})
        if failed := excess_failures(outcome.images, self.max_error_rate, plan.items):
            self._print(f"{failed} of {plan.items} images failed: more than --max-error-rate allows")
            self.stopped = True
        return not self.stopped

    def _print(self, line: str, level: int = logging.ERROR) -> None:
        self.console.err(line)
        _log.log(level, line)

    def _run(self, plan: Plan) -> Outcome[ShardResult]:
        with ImageProgress(plan.items) as progress:

            def on_progress(images: Counter[str]) -> None:
                progress.update(images.total(), _count_failed(images))
                if reason := self._reason_to_stop(images, plan):
                    driver.stop(reason)

            driver = Driver[ShardResult](
                LocalizeWorker,
                self.settings,
                self.workers,
                on_progress,
                on_warning=self.console.err,
                on_status=DriverMetrics(plan.recipe).publish,
            )
            return driver.run([(plan.generation, shard) for shard in range(plan.shards)])

    def _reason_to_stop(self, images: Counter[str], plan: Plan) -> str | None:
        if self.lease.lost is not None:
            return f"{self.lease.lost} has taken over, because this run could not renew its lease in time"
        least = min(_MIN_IMAGES_FOR_ERROR_RATE, plan.items)
        if failed := excess_failures(images, self.max_error_rate, least):
            return (
                f"{failed} of {images.total()} images failed, more than --max-error-rate "
                f"{self.max_error_rate:g} allows: raise it, or repair what fails"
            )
        return None


def excess_failures(images: Mapping[str, int], rate: float, least: int) -> int:
    """Return the number of failed images if it exceeds a rate, else 0.

    Args:
        images: Number of images by status.
        rate: The fraction of images that may fail.
        least: With fewer images than this the result is 0.
    """
    total, failed = sum(images.values()), _count_failed(images)
    return failed if total >= least and failed > rate * total else 0


def _count_failed(images: Mapping[str, int]) -> int:
    return sum(count for status, count in images.items() if status not in ("ok", "removed"))


def _run_record(plan: Plan, outcome: Outcome[ShardResult], seconds: float) -> RunRecord:
    """Return the run record; its costs (seconds, stages, bytes, attempts) are those of this run only."""
    parts = tuple(outcome.done[task].part for task in sorted(outcome.done))
    spent = sum((done.stage_times for done in outcome.done.values()), StageTimes())
    return RunRecord(
        recipe=plan.recipe,
        generation=plan.generation,
        plan_hash=plan.hash,
        items=plan.items,
        images=dict(_count_images(parts)),
        seconds=round(seconds, 3),
        images_per_second=outcome.images_per_second,
        stages=rounded(spent.seconds),
        read_bytes=spent.read_bytes,
        failed_attempts=outcome.failed_attempts,
        restarts=outcome.restarts,
        resolved=outcome.runtime_info,
        versions=outcome.runtime_info.get("versions", {}),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        parts=parts,
    )


def _count_images(parts: Iterable[Part]) -> Counter[str]:
    """Return the images of parts by status."""
    total = Counter[str]()
    for part in parts:
        total.update(part.images)
    return total
