"""The driver with real Ray actors that load nothing: what fails, hangs or dies stops no run."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, WorkerCrashedError

from jobs.driver import driver as drivers
from jobs.driver import retry_queue as attempts
from jobs.driver import worker_handle as slot
from jobs.driver.driver import Driver, Outcome
from jobs.driver.telemetry import DriverStatus
from jobs.driver.worker_handle import PATIENCE, HangTimeouts, LossCause, WorkerLoss
from jobs.driver.worker_progress import WorkerProgress, batch_seconds
from jobs.ray_cluster import Workers, connected
from support.failing_worker import FailingWorker, Script

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # its deadlines need a machine that does nothing else

SHORT = HangTimeouts(first_seconds=3.0, quiet_seconds=3.0, times=0.0)
Run = Callable[..., Outcome]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A local Ray whose workers find the modules of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.ray_cluster._local_cores", lambda: 2)
        with connected(None, verbose=False):
            yield


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    monkeypatch.setattr(attempts, "_FIRST_REST", 0.5)
    monkeypatch.setattr(slot, "_SOON_SECONDS", 0.3)

    def make(actions: dict[int, list[str]] | None = None, start: str = "ok") -> Script:
        return Script(tmp_path, actions or {}, start)

    return make


def make_driver(
    script: Script, count: int = 1, patience: HangTimeouts = PATIENCE
) -> tuple[Driver, list[str]]:
    told: list[str] = []
    workers = Workers(count, 1, 0)
    driver = Driver(FailingWorker, script, workers, lambda _: None, tell=told.append, patience=patience)
    return driver, told


def tasks(count: int) -> list[tuple[int, int]]:
    return [(1, shard) for shard in range(count)]


def test_a_hung_worker_is_ended_and_its_shard_alone_is_run_carefully(script: Callable[..., Script]) -> None:
    """The first shard hangs, before any speed was seen; a slow one that makes progress is left alone."""
    asked = script({0: ["hang"], 2: ["slow"]})
    driver, told = make_driver(asked, patience=SHORT)
    outcome = driver.run(tasks(3))
    assert sorted(outcome.done) == tasks(3)
    assert {shard: counts.careful for (_, shard), counts in outcome.done.items()} == {
        0: True,
        1: False,
        2: False,
    }
    assert sorted(asked.runs()) == [(0, False), (0, True), (1, False), (2, False)]
    assert told == ["shard 0 hung its worker, which was ended: no progress for 3 s"]


def test_who_watches_is_told_how_it_stands(script: Callable[..., Script]) -> None:
    asked = script({0: ["exit"], 1: ["OSError"], 2: ["OSError"] * 9})
    seen: list[DriverStatus] = []
    driver = Driver(FailingWorker, asked, Workers(1, 1, 0), lambda _: None, watch=seen.append)
    outcome = driver.run(tasks(4))
    assert (outcome.failed_attempts, outcome.restarts) == (5, 1)
    assert seen[-1] == DriverStatus(done=3, failed=5, lost=1, waiting=0, workers=0)
    assert all(0 <= standing.waiting <= 4 and standing.workers in (0, 1) for standing in seen)
    for name in ("done", "failed", "lost"):  # counters: they never fall
        counts = [getattr(standing, name) for standing in seen]
        assert counts == sorted(counts)


def test_a_shard_whose_store_fails_rests_and_others_go_on(script: Callable[..., Script]) -> None:
    asked = script({0: ["OSError", "MemoryError"]})
    driver, told = make_driver(asked)
    outcome = driver.run(tasks(4))
    assert sorted(outcome.done) == tasks(4)
    assert not outcome.lost
    # Others were begun before it came again, and nothing made it careful.
    assert asked.runs()[:2] == [(0, False), (1, False)]
    assert asked.runs()[-1] == (0, False)
    assert told == ["shard 0 failed: OSError: OSError", "shard 0 failed: MemoryError: MemoryError"]


def test_a_shard_that_always_fails_is_lost_and_the_rest_is_done(script: Callable[..., Script]) -> None:
    asked = script({1: ["OSError"] * 9})
    driver, _ = make_driver(asked)
    outcome = driver.run(tasks(3))
    assert sorted(outcome.done) == [(1, 0), (1, 2)]
    assert outcome.lost == {(1, 1): "OSError: OSError"}
    assert asked.runs().count((1, False)) == 3
    assert outcome.stopped is None


def test_where_everything_fails_the_run_stops_early(script: Callable[..., Script]) -> None:
    asked = script({shard: ["OSError"] * 9 for shard in range(40)})
    driver, _ = make_driver(asked)
    outcome = driver.run(tasks(40))
    assert outcome.stopped == "10 shards failed one after another, the last one by OSError: OSError"
    assert len(asked.runs()) <= 11  # the tenth failure, and the one queued behind it


def test_what_no_other_try_mends_ends_the_run(script: Callable[..., Script]) -> None:
    driver, _ = make_driver(script({0: ["ValueError"]}))
    with pytest.raises(ValueError, match="ValueError"):
        driver.run(tasks(2))


def test_a_shard_that_kills_its_worker_is_charged_and_the_queued_one_is_not(
    script: Callable[..., Script],
) -> None:
    asked = script({0: ["exit"] * 3})
    driver, told = make_driver(asked)
    outcome = driver.run(tasks(2))
    assert list(outcome.done) == [(1, 1)], told
    assert outcome.done[1, 1].careful is False
    assert list(outcome.lost) == [(1, 0)]
    assert "worker process has died" in outcome.lost[1, 0]
    assert [run for run in asked.runs() if run[0] == 0] == [(0, False), (0, True), (0, True)]
    assert len(told) == 3


def test_workers_that_die_as_they_start_stop_the_run(
    script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.driver.driver._DEATHS_AT_START", 2)
    driver, _ = make_driver(script(start="exit"))
    outcome = driver.run(tasks(1))
    assert outcome.stopped is not None
    assert outcome.stopped.startswith("workers die before they have started")


def test_workers_that_die_together_as_they_start_are_one_mishap(script: Callable[..., Script]) -> None:
    """A machine that is lost takes all that start on it along, and nobody knows yet that they were there."""
    driver, _ = make_driver(script(), count=8)
    for made_at, died_at in [(0.0, 9.0)] * 8 + [(9.0, 12.0), (12.0, 15.0), (15.0, 18.0)]:
        driver._died_at_start(death(made_at, died_at), LossCause.WORKER)
        assert not driver._stop.is_set()
    driver._died_at_start(death(18.0, 21.0), LossCause.WORKER)
    assert driver._why.startswith("workers die before they have started: ")


def death(made_at: float, died_at: float) -> WorkerLoss:
    """Of a worker that had not started."""
    made = SimpleNamespace(made_at=made_at, queue=[])
    return WorkerLoss(made, WorkerCrashedError("gone"), died_at)  # type: ignore[arg-type]


def test_what_keeps_a_worker_from_starting_is_raised(script: Callable[..., Script]) -> None:
    driver, _ = make_driver(script(start="no such network"))
    with pytest.raises(RayActorError, match="ValueError: no such network"):
        driver.run(tasks(1))


def test_a_hung_worker_does_not_make_the_drain_longer(
    script: Callable[..., Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to stop while one worker hangs: what the other one runs is kept."""
    monkeypatch.setattr(drivers, "_DRAIN_SECONDS", 6.0)
    asked = script({0: ["hang"], 2: ["slow"]})
    driver, _ = make_driver(asked, count=2)
    stopped_at: list[float] = []

    def stop() -> None:
        deadline = time.monotonic() + 60
        while (2, False) not in asked.runs() and time.monotonic() < deadline:
            time.sleep(0.05)
        stopped_at.append(time.monotonic())
        driver.stop("SIGTERM")

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = driver.run(tasks(9))
    took = time.monotonic() - stopped_at[0]
    thread.join()
    assert outcome.stopped == "SIGTERM"
    # 1 was queued behind the one that hangs, 3 behind the slow one.
    assert sorted(outcome.done) == [(1, 2), (1, 3)]
    assert 6 <= took < 12


def test_draining_leaves_time_to_end_within_20_seconds() -> None:
    assert drivers._DRAIN_SECONDS + drivers._LAST_TALLY_SECONDS + drivers._POLL_SECONDS <= 14


# How long a worker may be quiet


@pytest.mark.parametrize(
    ("own", "others", "limit"),
    [
        (WorkerProgress(), [], 900.0),
        (WorkerProgress(), [WorkerProgress(images=80, first_batch=16, first_at=0, last_at=4)], 900.0),
        (WorkerProgress(images=16, first_batch=16, first_at=1, last_at=1), [], 300.0),
        # 64 images after the first batch in 128 s: 32 s a batch of 16, so 640 s.
        (WorkerProgress(images=80, first_batch=16, first_at=100, last_at=228), [], 640.0),
        # The slowest one decides: 16 images in 64 s.
        (
            WorkerProgress(images=80, first_batch=16, first_at=100, last_at=228),
            [WorkerProgress(images=32, first_batch=16, first_at=0, last_at=64)],
            1280.0,
        ),
        (WorkerProgress(images=8000, first_batch=64, first_at=0, last_at=10), [], 300.0),
    ],
)
def test_the_limit_is_made_from_observed_speed(
    own: WorkerProgress, others: list[WorkerProgress], limit: float
) -> None:
    slowest = max(map(batch_seconds, [own, *others]))
    assert PATIENCE.limit(own, slowest) == pytest.approx(limit)
