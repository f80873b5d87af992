"""Boxes of the raw maps, evaluated with those of the rows on the same instances."""

import numpy as np
import pyarrow as pa

from camworker.metrics.confidence import percentile_interval, poisson_weights
from camworker.metrics.ground_truth.truth import hash_ids
from camworker.metrics.tally import Tally
from support.prediction_rows import (
    BY_CELLS,
    CELL,
    FAR,
    HALF,
    STEP,
    WHOLE,
    broken,
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

WITH_RAW = config(BY_CELLS, raw_rule="cam20")


def test_rows_and_raw_maps_are_evaluated_on_the_same_labels() -> None:
    # The rows' boxes cover the whole images. Those of the maps by cam20 cover the upper half.
    rows, true = stepped(HALF, WHOLE, CELL)
    result = figures(rows, true, WITH_RAW)
    raw = result["raw"]
    assert (result["box_rule"], raw["box_rule"]) == ("cam20", "cam20")
    assert result["gt_known_at"] == {"0.3": 2 / 3, "0.5": 2 / 3, "0.7": 1 / 3}
    assert raw["gt_known_at"] == {"0.3": 2 / 3, "0.5": 2 / 3, "0.7": 1 / 3}
    assert result["top1_localization_error"] == raw["top1_localization_error"] == 1 - 2 / 3
    assert result["errors"]["too_large"] == raw["errors"]["too_large"] == 1
    sizes = [(size["from"], size["gt_known_localization_accuracy"]) for size in raw["by_size"]]
    assert sizes == [
        *((low, None) for low in (0.0, 0.02)),
        (0.05, 0.0),
        *((low, None) for low in (0.1, 0.2)),
        (0.4, 1.0),
        (0.6, None),
        (0.8, 1.0),
    ]


def test_a_difference_is_the_rows_value_less_that_of_the_raw_maps() -> None:
    rows, true = stepped(HALF, HALF, (0, 0, 100, 100), FAR)
    result = figures(rows, true, WITH_RAW)
    assert result["gt_known_at"] == {"0.3": 3 / 4, "0.5": 3 / 4, "0.7": 1 / 4}
    assert result["raw"]["gt_known_at"] == {"0.3": 3 / 4, "0.5": 3 / 4, "0.7": 2 / 4}
    assert result["raw"]["difference"]["gt_known_at"] == {"0.3": 0, "0.5": 0, "0.7": -1 / 4}
    weights = poisson_weights(hash_ids(pa.array(list("0123")))).astype(float)
    with np.errstate(invalid="ignore"):  # a replicate can leave out all four images
        drawn = (weights[2] - weights[0] - weights[1]) / weights.sum(0)
    interval = percentile_interval(drawn)
    assert interval is not None
    np.testing.assert_allclose(result["raw"]["difference"]["gt_known_at_ci95"]["0.7"], interval)


def test_there_are_values_only_of_metrics_that_depend_on_boxes() -> None:
    rows, true = stepped(HALF)
    raw = figures(rows, true, WITH_RAW)["raw"]
    assert {name for name in raw if not name.endswith("_ci95")} == {
        *("box_rule", "errors", "by_size", "difference"),
        *("top1_localization_error", "top5_localization_error"),
        *("gt_known_localization_accuracy", "gt_known_at", "corloc"),
    }
    assert figures(rows, true, config(BY_CELLS))["raw"] is None


def test_parts_merge_with_their_raw_boxes() -> None:
    rows = [row(i, [(1, WHOLE)], known(1, WHOLE, cam=STEP)) for i in "abc"] + [broken("d")]
    true = truth(("a", 1, HALF), ("b", 1, CELL), ("c", 1, WHOLE), ("d", 1, WHOLE))
    shape = (1, 4, 4)
    together = tallied(table(*rows, shape=shape), true, WITH_RAW)
    apart = Tally()
    for one in rows:
        apart.update(table(one, shape=shape), true, WITH_RAW)
    assert summary_of(apart, true, WITH_RAW) == summary_of(together, true, WITH_RAW)
    assert together.raw is not None
    assert together.raw.sums["gt_known_localized_0.5"] == 2
