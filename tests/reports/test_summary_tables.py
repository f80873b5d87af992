"""Summaries as CSV: all values with their intervals, and lists that say how much they leave out."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from camworker.metrics.definitions import METRICS
from camworker.metrics.metric import Estimate
from camworker.metrics.summary import Comparison, Summary, SweepCurves
from camworker.metrics.tally import LISTED
from camworker.reports.summary_tables import (
    VALUE_COLUMNS,
    threshold_table,
    unmatched_rows,
    value_rows,
    write_csv,
)
from support.summaries import HOSTILE, four_of_each, summary_of


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summary_of(*four_of_each())[0]


def test_every_value_has_a_row_with_its_interval(summary: Summary) -> None:
    rows = {name: rest for name, *rest in value_rows(summary)}
    # Wilson's intervals of 3 of 4 and 2 of 4 (statsmodels.stats.proportion).
    assert rows["top1_localization_error"] == pytest.approx([0.75, 0.300642, 0.954413], abs=1e-6)
    assert rows["gt_known_localization_accuracy"] == pytest.approx([0.5, 0.150039, 0.849961], abs=1e-6)
    assert rows["pxap"] == [None, None, None]
    assert rows["images"] == [5, None, None]
    assert rows["max_box_acc_at.0.7"] == [0.5, None, None]
    assert rows["failed.decode_error"] == [1, None, None]
    assert rows["errors.too_large"] == [1, None, None]
    assert rows["baselines.whole_image"] == [pytest.approx(2 / 3), None, None]
    assert rows["by_size.0.05-0.10.instances"] == [1, None, None]
    assert rows["by_size.0.80-1.00.gt_known_localization_accuracy"] == [1.0, None, None]
    assert rows["iou_histogram.0.50-0.55.instances"] == [1, None, None]
    assert rows["calibration.bins.0.73-0.80.accuracy"] == [0.0, None, None]
    assert rows["calibration.expected_calibration_error"] == [pytest.approx(1.25 / 3), None, None]
    assert not [name for name in rows if name.startswith(("sweep.", "per_class", "unmatched"))]
    assert len(rows) == len(value_rows(summary))  # no name twice


def test_values_of_compared_recipes_are_named_by_recipe(summary: Summary) -> None:
    values = {metric.name: None for metric in METRICS} | {"corloc": 0.5}
    differences = {metric.name: Estimate(None) for metric in METRICS} | {"corloc": Estimate(0.25, (0.1, 0.4))}
    other = Comparison("r999", values, differences)
    rows = {name: rest for name, *rest in value_rows(replace(summary, compared=(other,)))}
    assert rows["compared.r999.corloc"] == [0.5, None, None]
    assert rows["compared.r999.difference.corloc"] == [0.25, 0.1, 0.4]
    assert rows["compared.r999.difference.pxap"] == [None, None, None]


def test_every_threshold_has_a_row() -> None:
    sweep = SweepCurves("cam", (0.0, 0.5), (0.1, 0.2), {0.3: (0.3, 0.4)})
    columns, rows = threshold_table(sweep)
    assert columns == ["threshold", "max_box_acc", "max_box_acc_v2_at_0.3"]
    assert rows == [(0.0, 0.1, 0.3), (0.5, 0.2, 0.4)]
    assert threshold_table(None) == (["threshold"], [])


def test_the_sweep_of_a_summary_has_a_hundred_rows(summary: Summary) -> None:
    columns, rows = threshold_table(summary.sweep)
    assert columns[1:] == ["max_box_acc", *(f"max_box_acc_v2_at_{delta}" for delta in (0.3, 0.5, 0.7))]
    assert [row[0] for row in rows] == [t / 100 for t in range(100)]


def test_unmatched_names_are_listed_by_kind(summary: Summary) -> None:
    assert unmatched_rows(summary) == [
        ("image_without_truth", "without", 1),
        ("truth_without_image", "unseen", 1),
        ("unknown_class", "dragon", 2),
        ("unknown_class", HOSTILE, 1),
    ]


def test_a_shortened_list_counts_the_rest(summary: Summary) -> None:
    listed = tuple(f"{n}.jpg" for n in range(LISTED))
    images = summary.images_with_truth + LISTED + 234
    cut = replace(summary, images=images, without_truth=listed)
    rows = [row for row in unmatched_rows(cut) if row[0].startswith("image_without_truth")]
    assert rows[-1] == ("image_without_truth_not_listed", "", 234)
    assert sum(count for _, _, count in rows) == LISTED + 234


def test_names_survive_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    names = [HOSTILE, 'comma, "quote"', "line\nbreak", "Vogelhäuschen 🐦", ""]
    write_csv(path, VALUE_COLUMNS, [(name, 0.1 + 0.2, None, 1) for name in names])
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "value", "low", "high"]] + [
        [name, "0.30000000000000004", "", "1"] for name in names
    ]
