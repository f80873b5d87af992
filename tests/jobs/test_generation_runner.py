"""The error budget and the lease of a run, as the Runner judges them while shards come in."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.ledger.lease import LeaseRecord
from camworker.ledger.ledger import Plan, PlanFile
from jobs.localize.generation_runner import Runner, too_many


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
        # A row that says that an image was removed is no failure.
        ({"ok": 50, "removed": 50}, 0.0, 100, 0),
        ({}, 0.0, 0, 0),
    ],
)
def test_too_many(images, rate, least, expected):
    assert too_many(images, rate, least) == expected


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0, 1))
def test_a_budget_that_is_larger_allows_all_that_a_smaller_one_does(ok, failed, rate):
    images = {"ok": ok, "unsupported": failed}
    if not too_many(images, rate, 100):
        assert not too_many(images, min(1.0, rate + 0.1), 100)
    assert not too_many(images, 1.0, 0)


class NotLost:
    lost = None


class Lost:
    lost = LeaseRecord("other", "alpha", 77, None, 0.0, 120.0)


def runner(lease, rate):
    return Runner(None, lease, None, None, rate, None, None)  # type: ignore[arg-type]


def plan(items):
    return Plan("r0123456789ab", 1, (PlanFile("key", "aa", 0, (items,)),), True)


def test_a_run_is_stopped_as_soon_as_enough_images_say_so():
    asked = runner(NotLost(), 0.1)
    assert asked._why_stop(Counter(ok=40, poison=59), plan(10_000)) is None
    assert asked._why_stop(Counter(ok=89, poison=11), plan(10_000)) == (
        "11 of 100 images failed, more than --max-error-rate 0.1 allows: raise it, or mend what fails"
    )
    assert asked._why_stop(Counter(ok=90, poison=10), plan(10_000)) is None
    # A run of less than that is judged when it is whole.
    assert asked._why_stop(Counter(ok=10, poison=9), plan(20)) is None
    assert asked._why_stop(Counter(ok=11, poison=9), plan(20)) is not None


def test_a_run_is_stopped_where_another_took_over():
    why = runner(Lost(), 1.0)._why_stop(Counter(ok=1), plan(10))
    assert why is not None
    assert why.startswith("the run on alpha, process 77, since 1970-01-01 00:00:00 UTC")
    assert why.endswith("has taken over, because this one could not renew its lease in time")
