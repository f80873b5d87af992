"""How long a worker may make no progress before it counts as hung."""

import pytest

from jobs.driver.worker_handle import DEFAULT_TIMEOUTS
from jobs.driver.worker_progress import WorkerProgress, batch_seconds


def finished(images: int, first_batch: int, seconds: float) -> WorkerProgress:
    """Return the progress of a worker that needed this long for the images after its first batch."""
    return WorkerProgress(
        images=images, first_batch=first_batch, first_batch_at=100, last_batch_at=100 + seconds
    )


@pytest.mark.parametrize(
    ("worker", "others", "limit"),
    [
        (WorkerProgress(), [], 900.0),
        (WorkerProgress(), [finished(80, 16, 4)], 900.0),
        (finished(16, 16, 0), [], 300.0),
        # 64 images after the first batch in 128 s: 32 s per batch of 16, so 640 s.
        (finished(80, 16, 128), [], 640.0),
        # The slowest worker decides: 16 images in 64 s.
        (finished(80, 16, 128), [finished(32, 16, 64)], 1280.0),
        (finished(8000, 64, 10), [], 300.0),
    ],
)
def test_the_limit_follows_from_observed_speed(
    worker: WorkerProgress, others: list[WorkerProgress], limit: float
) -> None:
    slowest = max(map(batch_seconds, [worker, *others]))
    assert DEFAULT_TIMEOUTS.limit(worker, slowest) == pytest.approx(limit)
