"""Running a planned generation to its end, and the account of it: counts, error budget, run record."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from camworker.inference.shard import ShardResult
from camworker.inference.stage_timer import StageTimes
from camworker.ledger.lease import Lease
from camworker.ledger.ledger import Ledger, Plan
from jobs.console import Console
from jobs.driver.driver import Driver
from jobs.driver.json_logs import LOG, log_context
from jobs.driver.outcome import Outcome
from jobs.driver.telemetry import DriverMetrics
from jobs.localize.worker import LocalizeWorker, WorkerSettings, rounded
from jobs.progress import ImageProgress, format_duration
from jobs.ray_cluster import Workers

_log: Final = LOG.getChild("driver")

_ERRORS_COUNT_FROM: Final = 100  # images, before the error budget can stop a run
# What the log tells of a run record.
_TOLD: Final = ("images", "seconds", "stages", "read_bytes", "failed_attempts", "restarts")


@dataclass
class RunSummary:
    """What one localize did: images computed now, those that were done before (skipped), parts.

    removed: rows that say that an image is no longer listed; they are planned, and not processed.
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
        """Add the work on a generation. Parts that an earlier run had committed are skipped images."""
        ours = [done.part for done in outcome.done.values() if done.seconds]
        images = _images(ours)
        self.generation = plan.generation
        self.planned += plan.items
        everything = _images([done.part for done in outcome.done.values()])
        self.removed += images.pop("removed", 0)
        self.skipped += everything.total() - everything["removed"] - images.total()
        self.processed += images.total()
        self.ok += images.pop("ok", 0)
        self.failed = dict(Counter(self.failed) + images)
        self.parts += len(ours)
        if ours:
            # Without a second batch there is no steady state to speak of.
            rate = outcome.images_per_second or sum(part.rows for part in ours) / seconds
            self.images_per_second = round(rate, 2)

    def tell(self, console: Console) -> None:
        """The same for people."""
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

    stopped: a signal, the error budget, or another run that took over the lease ended the work.
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
        """Run a generation's shards and write its run record; False when that was not possible."""
        if self.stopped:
            return False
        with log_context(recipe=plan.recipe, generation=plan.generation):
            return self._complete(plan)

    def _complete(self, plan: Plan) -> bool:
        self._note(f"generation {plan.generation}: {plan.items} images in {plan.shards} shards", logging.INFO)
        started = time.monotonic()
        outcome = self._run(plan)
        seconds = time.monotonic() - started
        self.summary.count(plan, outcome, seconds)
        if why := outcome.runtime_info.get("compilation", "").partition("off: ")[2]:
            self.console.err(f"the network was not compiled, and was slower than it could be: {why}")
        for (_, shard), why in outcome.lost.items():
            with log_context(shard=shard):
                self._note(f"shard {shard} of generation {plan.generation} could not be done: {why}")
        if outcome.stopped:
            self._note(f"stopped: {outcome.stopped}; run the same command again to resume")
            self.stopped = True
        if outcome.stopped or outcome.lost:
            return False
        record = _run_record(plan, outcome, seconds)
        self.ledger.commit_run(plan.generation, record)
        _log.info("generation done", extra={name: record[name] for name in _TOLD})
        if failed := too_many(record["images"], self.max_error_rate, plan.items):
            self._note(f"{failed} of {plan.items} images failed: more than --max-error-rate allows")
            self.stopped = True
        return not self.stopped

    def _note(self, line: str, level: int = logging.ERROR) -> None:
        self.console.err(line)
        _log.log(level, line)

    def _run(self, plan: Plan) -> Outcome[ShardResult]:
        with ImageProgress(plan.items) as progress:

            def on_progress(images: Counter[str]) -> None:
                progress.update(images.total(), _failed(images))
                if why := self._why_stop(images, plan):
                    driver.stop(why)

            driver = Driver[ShardResult](
                LocalizeWorker,
                self.settings,
                self.workers,
                on_progress,
                on_warning=self.console.err,
                on_status=DriverMetrics(plan.recipe).publish,
            )
            return driver.run([(plan.generation, shard) for shard in range(plan.shards)])

    def _why_stop(self, images: Counter[str], plan: Plan) -> str | None:
        if self.lease.lost is not None:
            return f"{self.lease.lost} has taken over, because this one could not renew its lease in time"
        if failed := too_many(images, self.max_error_rate, min(_ERRORS_COUNT_FROM, plan.items)):
            return (
                f"{failed} of {images.total()} images failed, more than --max-error-rate "
                f"{self.max_error_rate:g} allows: raise it, or mend what fails"
            )
        return None


def too_many(images: Mapping[str, int], rate: float, least: int) -> int:
    """How many images failed if that is more than rate allows, else 0; images: count by status.

    Below least images nothing is too many: a few failures among the first few say little.
    """
    total, failed = sum(images.values()), _failed(images)
    return failed if total >= least and failed > rate * total else 0


def _failed(images: Mapping[str, int]) -> int:
    return sum(count for status, count in images.items() if status not in ("ok", "removed"))


def _run_record(plan: Plan, outcome: Outcome[ShardResult], seconds: float) -> dict[str, Any]:
    """What it took (seconds, stages, bytes read, attempts, restarts) is of this run, not of earlier ones."""
    parts = [outcome.done[task].part for task in sorted(outcome.done)]
    spent = sum((done.stage_times for done in outcome.done.values()), StageTimes())
    return {
        "recipe": plan.recipe,
        "generation": plan.generation,
        "plan_hash": plan.hash,
        "items": plan.items,
        "images": dict(_images(parts)),
        "seconds": round(seconds, 3),
        "images_per_second": outcome.images_per_second,
        "stages": rounded(spent.seconds),
        "read_bytes": spent.read_bytes,
        "failed_attempts": outcome.failed_attempts,
        "restarts": outcome.restarts,
        "resolved": outcome.runtime_info,
        "versions": outcome.runtime_info.get("versions", {}),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parts": [asdict(part) for part in parts],
    }


def _images(parts: list[Any]) -> Counter[str]:
    """Images by status over parts."""
    total = Counter[str]()
    for part in parts:
        total.update(part.images)
    return total
