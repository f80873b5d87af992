"""Workers that die while they start."""

from types import SimpleNamespace

from ray.exceptions import WorkerCrashedError

from jobs.driver.loss_tracker import LossTracker
from jobs.driver.retry_queue import RetryQueue
from jobs.driver.worker_loss import LossCause, WorkerLoss


def loss(started_at: float, lost_at: float) -> WorkerLoss:
    """Return the loss of a worker that had not started."""
    return WorkerLoss(SimpleNamespace(), None, None, started_at, WorkerCrashedError("gone"), lost_at)


def test_workers_that_die_together_are_one_incident() -> None:
    """A lost machine takes all workers that start on it along, before the cluster knew their nodes."""
    reasons: list[str] = []
    tracker = LossTracker(RetryQueue(), lambda task, line: None, reasons.append)
    for started_at, lost_at in [(0.0, 9.0)] * 8 + [(9.0, 12.0), (12.0, 15.0), (15.0, 18.0)]:
        tracker.record_start_loss(loss(started_at, lost_at), LossCause.WORKER)
        assert not reasons
    tracker.record_start_loss(loss(18.0, 21.0), LossCause.WORKER)
    assert reasons[0].startswith("workers die before they have started: ")
