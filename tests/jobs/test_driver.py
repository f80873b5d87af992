"""The driver with Ray actors that load nothing: no failure, hang or death of a worker ends a run."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from camworker.errors import CommitError
from jobs.driver import driver as driver_module
from jobs.driver import retry_queue, worker_loss
from jobs.driver.driver import Driver
from jobs.driver.telemetry import DriverStatus
from jobs.driver.worker_handle import DEFAULT_TIMEOUTS, HangTimeouts
from jobs.ray_cluster import Workers, connected
from support.failing_worker import Counts, FailingWorker, Script

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # the deadlines need an idle machine

SHORT = HangTimeouts(first_batch_seconds=3.0, quiet_seconds=3.0, batches=0.0)
MakeScript = Callable[..., Script]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A local Ray whose workers find the modules of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.ray_cluster._local_cores", lambda: 2)
        with connected(None, verbose=False):
            yield


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeScript:
    monkeypatch.setattr(retry_queue, "_FIRST_BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr(worker_loss, "_NODE_LOSS_DELAY_SECONDS", 0.3)

    def make(actions: dict[int, list[str]] | None = None, start: str = "ok") -> Script:
        return Script(tmp_path, actions or {}, start)

    return make


def make_driver(
    script: Script, count: int = 1, timeouts: HangTimeouts = DEFAULT_TIMEOUTS
) -> tuple[Driver[Counts], list[str]]:
    """Return a driver and the list of its warnings."""
    warnings: list[str] = []
    driver = Driver[Counts](
        FailingWorker,
        script,
        Workers(count, 1, 0),
        lambda images: None,
        on_warning=warnings.append,
        timeouts=timeouts,
    )
    return driver, warnings


def tasks(count: int) -> list[tuple[int, int]]:
    return [(1, shard) for shard in range(count)]


def test_a_hung_worker_is_replaced_and_its_shard_is_run_isolated(script: MakeScript) -> None:
    """The first shard hangs before any speed is known; a slow shard that makes progress is left alone."""
    actions = script({0: ["hang"], 2: ["slow"]})
    driver, warnings = make_driver(actions, timeouts=SHORT)
    outcome = driver.run(tasks(3))
    assert sorted(outcome.done) == tasks(3)
    assert {shard: counts.isolated for (_, shard), counts in outcome.done.items()} == {
        0: True,
        1: False,
        2: False,
    }
    assert sorted(actions.runs()) == [(0, False), (0, True), (1, False), (2, False)]
    assert warnings == ["shard 0 hung its worker, which was ended: no progress for 3 s"]


def test_the_status_is_reported(script: MakeScript) -> None:
    actions = script({0: ["exit"], 1: ["OSError"], 2: ["OSError"] * 9})
    statuses: list[DriverStatus] = []
    driver = Driver[Counts](
        FailingWorker, actions, Workers(1, 1, 0), lambda images: None, on_status=statuses.append
    )
    outcome = driver.run(tasks(4))
    assert (outcome.failed_attempts, outcome.restarts) == (5, 1)
    assert statuses[-1] == DriverStatus(done=3, failed=5, lost=1, waiting=0, workers=0)
    assert all(0 <= status.waiting <= 4 and status.workers in (0, 1) for status in statuses)
    for name in ("done", "failed", "lost"):  # counters never fall
        counts = [getattr(status, name) for status in statuses]
        assert counts == sorted(counts)


def test_a_shard_whose_store_fails_backs_off_while_others_run(script: MakeScript) -> None:
    actions = script({0: ["OSError", "MemoryError"]})
    driver, warnings = make_driver(actions)
    outcome = driver.run(tasks(4))
    assert sorted(outcome.done) == tasks(4)
    assert not outcome.lost
    # Others started before its retry, and decoding was not isolated.
    assert actions.runs()[:2] == [(0, False), (1, False)]
    assert actions.runs()[-1] == (0, False)
    assert warnings == ["shard 0 failed: OSError: OSError", "shard 0 failed: MemoryError: MemoryError"]


def test_a_shard_that_always_fails_is_lost_and_the_rest_is_done(script: MakeScript) -> None:
    actions = script({1: ["OSError"] * 9})
    driver, _ = make_driver(actions)
    outcome = driver.run(tasks(3))
    assert sorted(outcome.done) == [(1, 0), (1, 2)]
    assert outcome.lost == {(1, 1): "OSError: OSError"}
    assert actions.runs().count((1, False)) == 3
    assert outcome.stopped is None


def test_a_run_in_which_everything_fails_stops_early(script: MakeScript) -> None:
    actions = script({shard: ["OSError"] * 9 for shard in range(40)})
    driver, _ = make_driver(actions)
    outcome = driver.run(tasks(40))
    assert outcome.stopped == "10 shards failed one after another, the last one by OSError: OSError"
    assert len(actions.runs()) <= 11  # the tenth failure and the shard queued behind it


def test_an_error_that_a_retry_cannot_fix_ends_the_run(script: MakeScript) -> None:
    driver, _ = make_driver(script({0: ["ValueError"]}))
    with pytest.raises(ValueError, match="ValueError"):
        driver.run(tasks(2))


def test_only_the_running_shard_is_charged_for_the_death_of_its_worker(
    script: MakeScript,
) -> None:
    actions = script({0: ["exit"] * 3})
    driver, warnings = make_driver(actions)
    outcome = driver.run(tasks(2))
    assert list(outcome.done) == [(1, 1)], warnings
    assert outcome.done[1, 1].isolated is False
    assert list(outcome.lost) == [(1, 0)]
    assert "worker process has died" in outcome.lost[1, 0]
    assert [run for run in actions.runs() if run[0] == 0] == [(0, False), (0, True), (0, True)]
    assert len(warnings) == 3


def test_workers_that_die_while_they_start_stop_the_run(
    script: MakeScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.driver.loss_tracker._MAX_START_LOSSES", 2)
    driver, _ = make_driver(script(start="exit"))
    outcome = driver.run(tasks(1))
    assert outcome.stopped is not None
    assert outcome.stopped.startswith("workers die before they have started")


def test_an_error_of_the_constructor_is_raised(script: MakeScript) -> None:
    driver, _ = make_driver(script(start="no such network"))
    with pytest.raises(RayActorError, match="ValueError: no such network"):
        driver.run(tasks(1))


def test_a_refusal_of_the_constructor_is_raised_as_it_is(script: MakeScript) -> None:
    driver, _ = make_driver(script(start="CommitError"))
    with pytest.raises(CommitError) as raised:
        driver.run(tasks(1))
    assert (type(raised.value), str(raised.value)) == (CommitError, "refused")


def test_a_hung_worker_does_not_make_the_drain_longer(
    script: MakeScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the run is stopped while one worker hangs, the result of the other one is kept."""
    monkeypatch.setattr(driver_module, "_DRAIN_SECONDS", 6.0)
    actions = script({0: ["hang"], 2: ["slow"]})
    driver, _ = make_driver(actions, count=2)
    stopped_at: list[float] = []

    def stop() -> None:
        deadline = time.monotonic() + 60
        while (2, False) not in actions.runs() and time.monotonic() < deadline:
            time.sleep(0.05)
        stopped_at.append(time.monotonic())
        driver.stop("SIGTERM")

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = driver.run(tasks(9))
    took = time.monotonic() - stopped_at[0]
    thread.join()
    assert outcome.stopped == "SIGTERM"
    # Shard 1 was queued behind the hung one, shard 3 behind the slow one.
    assert sorted(outcome.done) == [(1, 2), (1, 3)]
    assert 6 <= took < 12


def test_draining_leaves_time_to_end_within_20_seconds() -> None:
    seconds = (
        driver_module._DRAIN_SECONDS,
        driver_module._LAST_PROGRESS_SECONDS,
        driver_module._POLL_SECONDS,
    )
    assert sum(seconds) <= 14
