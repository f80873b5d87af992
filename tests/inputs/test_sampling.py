"""Limits and reproducible samples of items."""

import random

import pytest

from camworker.inputs.sampling import select
from support.factories import ids, make_items


@pytest.mark.parametrize(("limit", "expected"), [(None, "abc"), (2, "ab"), (3, "abc"), (9, "abc")])
def test_limit_takes_the_first_items(limit, expected):
    assert ids(select(make_items(*"abc"), limit=limit, sample=None, seed=0)) == list(expected)


def test_sample_depends_on_ids_not_on_their_order():
    names = [f"{n}.jpg" for n in range(300)]
    sampled = ids(select(make_items(*names), limit=None, sample=40, seed=7))
    assert len(sampled) == 40
    assert sampled == [name for name in names if name in sampled], "the order of the listing is kept"
    shuffled = random.Random(1).sample(names, len(names))
    again = ids(select(make_items(*shuffled), limit=None, sample=40, seed=7))
    assert set(again) == set(sampled)
    assert again == [name for name in shuffled if name in sampled]
    assert set(ids(select(make_items(*names), limit=None, sample=40, seed=8))) != set(sampled)


def test_larger_sample_contains_the_smaller():
    items = make_items(*map(str, range(100)))
    small, large = (set(ids(select(items, limit=None, sample=n, seed=0))) for n in (10, 30))
    assert small < large


@pytest.mark.parametrize("sample", [3, 4, 1000])
def test_sample_of_all_items_keeps_all(sample):
    assert ids(select(make_items(*"cab"), limit=None, sample=sample, seed=0)) == list("cab")


def test_sample_is_drawn_from_the_limited_items():
    items = make_items(*map(str, range(100)))
    assert set(ids(select(items, limit=10, sample=5, seed=0))) < set(map(str, range(10)))
