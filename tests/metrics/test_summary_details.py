"""Tests of the details of summaries: errors, sizes, baselines, calibration, classes, truth."""

from itertools import pairwise

import pytest

from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.summary import ClassResult, TruthFacts
from camworker.metrics.tally import LISTED, SIZE_EDGES
from support.prediction_rows import (
    CLASSES,
    FAR,
    WHOLE,
    broken,
    figures,
    known,
    row,
    summary_of,
    table,
    tallied,
    truth,
)


def test_error_categories_count_instances_with_boxes() -> None:
    rows = table(
        row("a", [(1, WHOLE)]),
        row("b", [(2, WHOLE)]),
        row("c", [(1, (0, 0, 10, 10))]),
        row("d", [(1, WHOLE)]),
        broken("e"),
        row("f", [(2, WHOLE)]),
    )
    true = truth(
        *(("a", 1, WHOLE), ("b", 1, WHOLE), ("c", 1, (0, 0, 50, 50)), ("d", 1, (0, 0, 30, 30))),
        *(("e", 1, WHOLE), ("f", 1, None)),
    )
    counts = {"correct": 1, "wrong_class": 1, "part": 1, "too_large": 1, "no_box": 1}
    assert figures(rows, true)["errors"] == {"several_instances": 0, "too_small": 0, **counts}


def test_sizes_of_objects() -> None:
    sides = {"tiny": 10, "edge": 0.02**0.5 * 100 + 1e-3, "half": 71, "whole": 100}
    rows = table(*(row(i, [(1, WHOLE)], known(1, (0, 0, s, s))) for i, s in sides.items()), broken("failed"))
    true = truth(*((i, 1, (0, 0, s, s)) for i, s in sides.items()), ("failed", 1, WHOLE))
    by_size = figures(rows, true)["by_size"]
    assert [(size["from"], size["to"]) for size in by_size] == list(pairwise(SIZE_EDGES))
    assert [size["instances"] for size in by_size] == [1, 1, 0, 0, 0, 1, 0, 1]
    assert [size["gt_known_localization_accuracy"] for size in by_size] == [
        1,
        1,
        None,
        None,
        None,
        1,
        None,
        1,
    ]
    assert [size["top1_localization_accuracy"] for size in by_size] == [0, 0, None, None, None, 1, None, 1]
    assert [size["whole_image_accuracy"] for size in by_size] == [0, 0, None, None, None, 1, None, 1]


def test_the_histogram_of_iou() -> None:
    widths = {"a": 100, "b": 97, "c": 50, "d": 4, "e": 5}
    rows = table(*(row(i, [(1, WHOLE)], known(1, (0, 0, w, 100))) for i, w in widths.items()), broken("f"))
    true = truth(*((i, 1, WHOLE) for i in "abcdef"), ("a", 2, None))
    histogram = figures(rows, true)["iou_histogram"]
    assert histogram["edges"] == [n / 20 for n in range(21)]
    assert {n: count for n, count in enumerate(histogram["instances"]) if count} == {0: 2, 1: 1, 10: 1, 19: 2}


def test_the_baselines_are_of_the_same_truth() -> None:
    rows = table(*(row(i, [(1, FAR)], size=(224, 224)) for i in "abc"), broken("d"))
    centred = (56, 56, 168, 168)  # a quarter of the image
    true = truth(("a", 1, (0, 0, 224, 112)), ("b", 1, centred), ("c", 1, FAR), ("d", 1, WHOLE))
    baselines = figures(rows, true)["baselines"]
    assert baselines["instances"] == 3  # the size of what failed is unknown
    assert baselines["whole_image"] == 1 / 3
    # Some threshold gives the centred box; the upper half needs most of the square for 0.3.
    assert baselines["centred_gaussian"]["0.7"] == 1 / 3
    assert baselines["centred_gaussian"]["0.3"] == 2 / 3
    assert 0 < baselines["centred_gaussian_threshold"]["0.7"] < 1


def test_calibration() -> None:
    rows = table(
        *(row(i, [(1, WHOLE)], score=0.9375) for i in "abc"),
        row("d", [(2, WHOLE), (1, WHOLE)], score=0.9375),
        row("e", [(2, WHOLE)], score=0.25),
        row("f", [(1, WHOLE)], score=1.0),
        broken("g"),
        row("stray", [(1, WHOLE)], score=0.5),
    )
    true = truth(*((i, 1, None) for i in "abcdefg"), ("a", 2, None))
    calibration = figures(rows, true)["calibration"]
    # Bins of a fifteenth: 0.9375 and 1 in the last, 0.25 in the fourth.
    bins = calibration["bins"]
    assert [b["images"] for b in bins] == [0, 0, 0, 1, *[0] * 10, 5]
    assert bins[3] == {"from": 3 / 15, "to": pytest.approx(4 / 15), "images": 1, "score": 0.25, "accuracy": 0}
    assert bins[14]["score"] == (4 * 0.9375 + 1) / 5
    assert bins[14]["accuracy"] == 4 / 5
    assert bins[0]["score"] is bins[0]["accuracy"] is None
    expected = (5 * abs(4 / 5 - 4.75 / 5) + 1 * 0.25) / 6
    assert calibration["expected_calibration_error"] == pytest.approx(expected)


def test_classes() -> None:
    rows = table(
        row("a", [(1, WHOLE)], known(1, WHOLE)),
        row("b", [(2, WHOLE), (1, WHOLE)], known(1, FAR)),
        broken("c"),
    )
    true = truth(("a", 1, WHOLE), ("b", 1, WHOLE), ("c", 2, None))
    classes = summary_of(tallied(rows, true), true).per_class
    assert [c.name for c in classes] == list("abcdefgh")
    assert [c.label for c in classes] == list(range(CLASSES))
    values = {
        "top1_classification_accuracy": 0.5,
        "top5_classification_accuracy": 1,
        "top1_localization_accuracy": 0.5,
        "top5_localization_accuracy": 1,
        "gt_known_localization_accuracy": 0.5,
        "gt_known_at_0.3": 0.5,
        "gt_known_at_0.7": 0.5,
        "corloc": 0.5,
        "pointing_game_accuracy": 1,
    }
    assert classes[1] == ClassResult(1, "b", instances=2, instances_with_boxes=2, values=values)
    assert (classes[2].instances, classes[2].instances_with_boxes) == (1, 0)
    assert classes[2].values["top1_classification_accuracy"] == 0
    assert classes[2].values["corloc"] is classes[2].values["top1_localization_accuracy"] is None
    assert set(classes[0].values.values()) == {None}


def test_facts_about_the_truth() -> None:
    true = truth(
        *(("a", 1, WHOLE), ("a", 2, None), ("b", 1, WHOLE), ("c", 1, WHOLE)),
        unknown={"unicorn": 2},
        notes={"iscrowd": 3},
    )
    tally = tallied(table(row("b", [(1, WHOLE)]), row("stray", [(1, WHOLE)])), true)
    facts = TruthFacts.from_truth(true, tally.seen)
    assert (facts.images, facts.labels, facts.boxes, facts.masks) == (3, 4, True, False)
    assert sorted(facts.unseen) == ["a", "c"]
    summary = summary_of(tally, true)
    assert summary.unknown_classes == {"unicorn": 2}
    assert summary.truth_notes == {"iscrowd": 3}
    nothing = TruthFacts.from_truth(truth(("a", 1, None)), None)
    assert (nothing.unseen, nothing.boxes, nothing.first_image) == (("a",), False, "a")
    assert TruthFacts.from_truth(truth(), None).first_image is None


def test_images_of_the_truth_are_listed_up_to_a_number() -> None:
    count = LISTED + 20
    true = Truth.from_rows([str(n) for n in range(count)], [1] * count)
    facts = TruthFacts.from_truth(true, tallied(table(row("7", [(1, WHOLE)])), true).seen)
    assert len(facts.unseen) == LISTED
    assert "7" not in facts.unseen
