"""Tests of the intervals of metrics, and of the paired comparison of recipes."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from camworker.metrics.compute import compare
from camworker.metrics.confidence import poisson_weights, wilson
from camworker.metrics.definitions import METRICS
from camworker.metrics.ground_truth.truth import hash_ids
from camworker.metrics.metric import Estimate
from camworker.metrics.summary import Summary
from camworker.metrics.tally import Tally
from support.prediction_rows import (
    BY_CELLS,
    CELL,
    FAR,
    HALF,
    WHOLE,
    config,
    figures,
    known,
    row,
    stepped,
    summary_of,
    table,
    tallied,
    truth,
)


def test_a_share_of_images_has_a_wilson_interval() -> None:
    rows = table(*(row(i, [(1 + (i == "b"), WHOLE)], known(1, WHOLE)) for i in "abcd"))
    result = figures(rows, truth(*((i, 1, WHOLE if i in "ab" else FAR) for i in "abcd")))
    assert result["top1_classification_error"] == 1 / 4
    assert result["top1_classification_error_ci95"] == list(wilson(1, 4))
    assert result["top1_localization_error_ci95"] == list(wilson(3, 4))
    assert result["gt_known_localization_accuracy_ci95"] == list(wilson(2, 4))


def test_gt_known_accuracy_is_reported_at_three_ious() -> None:
    boxes = [(0, 0, width, 100) for width in (20, 30, 60, 70)]  # of a true box over 100 columns
    ids = [str(n) for n in range(4)]
    rows = table(*(row(i, [(1, WHOLE)], known(1, box)) for i, box in zip(ids, boxes, strict=True)))
    result = figures(rows, truth(*((i, 1, WHOLE) for i in ids)))
    assert result["gt_known_at"] == {"0.3": 3 / 4, "0.5": 2 / 4, "0.7": 1 / 4}
    assert result["gt_known_at_ci95"] == {
        delta: list(wilson(hits, 4)) for delta, hits in (("0.3", 3), ("0.5", 2), ("0.7", 1))
    }
    assert result["gt_known_localization_accuracy"] == 2 / 4


def test_labels_without_a_box_do_not_widen_localization() -> None:
    rows = table(*(row(i, [(1, WHOLE)], known(1, WHOLE)) for i in "abcd"))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, FAR), ("c", 1, None), ("d", 1, None)))
    assert result["top1_classification_error_ci95"] == list(wilson(0, 4))
    assert result["top1_localization_error_ci95"] == list(wilson(1, 2))


def percentiles(drawn: np.ndarray) -> list[float]:
    return np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975]).tolist()


def test_images_of_several_labels_have_a_bootstrap_interval() -> None:
    ids = [str(n) for n in range(200)]
    rows = table(*(row(i, [(1, WHOLE), (2, WHOLE)]) for i in ids))
    true = truth(*((i, label, WHOLE) for n, i in enumerate(ids) for label in (1, 2 + n % 2)))
    result = figures(rows, true)
    assert result["top5_classification_error"] == 0.25
    weights = poisson_weights(hash_ids(pa.array(ids))).T.astype(float)
    drawn = (weights * (np.arange(200) % 2)).sum(1) / (2 * weights.sum(1))
    assert result["top5_classification_error_ci95"] == pytest.approx(percentiles(drawn))
    # The labels of an image come and go together: 0.25 +- 1.96 x 0.25 / sqrt(200).
    low, high = result["top5_classification_error_ci95"]
    assert high - low == pytest.approx(2 * 1.96 * 0.25 / 200**0.5, rel=0.25)


def test_every_replicate_takes_its_own_best_threshold() -> None:
    corners = [HALF] * 6 + [CELL] * 5 + [FAR]
    rows, true = stepped(*corners)
    result = figures(rows, true, config(BY_CELLS, sweep="cam"))
    weights = poisson_weights(hash_ids(rows["image_id"].combine_chunks())).T.astype(float)
    low, high = weights[:, :6].sum(1), weights[:, 6:11].sum(1)
    drawn = np.maximum(low, high) / weights.sum(1)
    assert result["max_box_acc"] == 0.5
    assert result["max_box_acc_ci95"] == pytest.approx(percentiles(drawn))
    assert result["max_box_acc_v2_ci95"] == pytest.approx(percentiles(drawn))


def test_means_over_classes_have_a_bootstrap_interval() -> None:
    labels = np.arange(40) % 4 % 3  # class 0 twice as often
    ids = [str(n) for n in range(40)]
    rows = table(*(row(i, [(k, WHOLE)], known(k, WHOLE)) for i, k in zip(ids, labels.tolist(), strict=True)))
    hits = np.arange(40) % 5 < 2
    true = truth(
        *((i, k, WHOLE if hit else FAR) for i, k, hit in zip(ids, labels.tolist(), hits, strict=True))
    )
    result = figures(rows, true)
    weights = poisson_weights(hash_ids(pa.array(ids))).T.astype(float)
    by_class = [(weights * hits)[:, labels == k].sum(1) / weights[:, labels == k].sum(1) for k in range(3)]
    assert result["corloc_ci95"] == pytest.approx(percentiles(np.nanmean(by_class, axis=0)))


def test_two_equal_tallies_differ_by_nothing() -> None:
    rows, true = stepped(HALF, CELL, HALF, FAR)
    what = config(BY_CELLS, sweep="cam")
    tally = tallied(rows, true, what)
    summary = summary_of(tally, true, what)
    comparison = compare(tally, tallied(rows, true, what), summary, summary)
    for metric in METRICS:
        difference = comparison.differences[metric.name]
        if summary.value(metric.name) is None:
            assert difference.value is difference.interval is None
        else:
            assert (difference.value, difference.interval) == (0, (0, 0))


def recipes_of(hits: list[np.ndarray]) -> list[tuple[Tally, Summary]]:
    """Return a tally and its summary for each recipe; hits [N] says whether it localizes an image."""
    found = []
    for of_recipe in hits:
        rows = table(
            *(row(str(n), [(1, WHOLE)], known(1, WHOLE if hit else FAR)) for n, hit in enumerate(of_recipe))
        )
        true = truth(*((str(n), 1, WHOLE) for n in range(len(of_recipe))))
        tally = tallied(rows, true, config(sweep=None))
        found.append((tally, summary_of(tally, true, config(sweep=None))))
    return found


def test_a_paired_interval_is_narrower_where_recipes_agree() -> None:
    first = np.arange(120) % 3 > 0
    second = first | (np.arange(120) % 20 == 0)  # right where the first is, and on two more
    (ours, one), (theirs, two) = recipes_of([first, second])
    name = "gt_known_localization_accuracy"
    difference = compare(ours, theirs, one, two).differences[name]
    assert difference.value == pytest.approx((second.sum() - first.sum()) / 120)
    low, high = difference.interval
    assert 0 <= low < difference.value < high
    unpaired = np.hypot(*(np.diff(summary.estimates[name].interval)[0] for summary in (one, two)))
    assert high - low < 0.5 * unpaired
    weights = poisson_weights(hash_ids(pa.array([str(n) for n in range(120)]))).T.astype(float)
    drawn = (weights * (second.astype(float) - first)).sum(1) / weights.sum(1)
    assert [low, high] == pytest.approx(percentiles(drawn))
    back = compare(theirs, ours, two, one).differences[name]
    assert back.value == -difference.value
    assert back.interval == pytest.approx((-high, -low))


def test_metrics_that_one_recipe_does_not_have_are_not_compared() -> None:
    (ours, one), (theirs, two) = recipes_of([np.array([True, False]), np.array([True, True])])
    two = replace(two, estimates={**two.estimates, "corloc": Estimate(None)})
    differences = compare(ours, theirs, one, two).differences
    assert differences["corloc"].value is differences["corloc"].interval is None
    assert differences["max_box_acc"].value is None
    assert differences["gt_known_localization_accuracy"].value == 0.5
