"""The error rate and the lost lease that stop a run while shards arrive."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.ledger.lease import LeaseRecord
from camworker.ledger.records import Plan, PlanFile
from jobs.localize.generation_runner import Runner, excess_failures


@pytest.mark.parametrize(
    ("images", "rate", "least", "expected"),
    [
        ({"ok": 95, "poison": 5}, 0.05, 100, 0),
        ({"ok": 94, "poison": 6}, 0.05, 100, 6),
        ({"ok": 93, "poison": 6}, 0.05, 100, 0),
        ({"decode_error": 50, "read_error": 49}, 0.0, 100, 0),
        ({"decode_error": 50, "read_error": 50}, 0.0, 100, 100),
        ({"decode_error": 50, "read_error": 50}, 1.0, 100, 0),
        ({"ok": 9, "changed": 1}, 0.05, 10, 1),
        # A removed image is not a failure.
        ({"ok": 50, "removed": 50}, 0.0, 100, 0),
        ({}, 0.0, 0, 0),
    ],
)
def test_excess_failures(images: dict[str, int], rate: float, least: int, expected: int) -> None:
    assert excess_failures(images, rate, least) == expected


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0, 1))
def test_a_higher_rate_allows_all_that_a_lower_one_does(ok: int, failed: int, rate: float) -> None:
    images = {"ok": ok, "unsupported": failed}
    if not excess_failures(images, rate, 100):
        assert not excess_failures(images, min(1.0, rate + 0.1), 100)
    assert not excess_failures(images, 1.0, 0)


HELD = SimpleNamespace(lost=None)
LOST = SimpleNamespace(lost=LeaseRecord("other", "alpha", 77, None, 0.0, 120.0))


def runner(lease: SimpleNamespace, rate: float) -> Runner:
    return Runner(None, lease, None, None, rate, None, None)  # type: ignore[arg-type]


def plan(items: int) -> Plan:
    return Plan("r0123456789ab", 1, (PlanFile("key", "aa", 0, (items,)),), True)


def test_a_run_stops_as_soon_as_enough_images_have_failed() -> None:
    held = runner(HELD, 0.1)
    assert held._reason_to_stop(Counter(ok=40, poison=59), plan(10_000)) is None
    assert held._reason_to_stop(Counter(ok=89, poison=11), plan(10_000)) == (
        "11 of 100 images failed, more than --max-error-rate 0.1 allows: raise it, or repair what fails"
    )
    assert held._reason_to_stop(Counter(ok=90, poison=10), plan(10_000)) is None
    # A smaller run is judged when all of its images are done.
    assert held._reason_to_stop(Counter(ok=10, poison=9), plan(20)) is None
    assert held._reason_to_stop(Counter(ok=11, poison=9), plan(20)) is not None


def test_a_run_stops_when_another_one_has_taken_over() -> None:
    reason = runner(LOST, 1.0)._reason_to_stop(Counter(ok=1), plan(10))
    assert reason is not None
    assert reason.startswith("the run on alpha, process 77, since 1970-01-01 00:00:00 UTC")
    assert reason.endswith("has taken over, because this run could not renew its lease in time")
