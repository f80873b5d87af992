"""Tests of matching: pairs, ties at IoU 1/2, error categories, boxes made anew."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from camworker.frame import Frame
from camworker.metrics.criteria import Criteria
from camworker.metrics.error_categories import ERRORS
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.matching import COLUMNS, Matches, match_predictions, read_targets
from camworker.schemas import CamShape
from support.prediction_rows import FAR, LEFT, WHOLE, broken, criteria, known, row, table, truth
from support.recipes import make_recipe


def matched(rows: pa.Table, true: Truth, how: Criteria | None = None) -> Matches:
    how = how or criteria()
    return match_predictions(rows, true, how, read_targets(rows["targets"], how))


def test_instances_are_ordered_by_row_and_label() -> None:
    rows = table(row("b", [(1, WHOLE)]), row("stray", [(1, WHOLE)]), row("a", [(2, WHOLE)]))
    true = truth(
        ("a", 3, FAR), ("absent", 1, FAR), ("b", 4, WHOLE), ("b", 1, None), ("a", 2, LEFT), ("a", 3, LEFT)
    )
    found = matched(rows, true)
    assert found.rows.tolist() == [0, 0, 2, 2]
    assert found.labels.tolist() == [1, 4, 2, 3]
    assert found.has_boxes.tolist() == [False, True, True, True]
    boxes = [found.boxes[found.box_instances == n].tolist() for n in range(4)]
    assert boxes == [[], [list(WHOLE)], [list(LEFT)], [list(FAR), list(LEFT)]]


def test_true_boxes_are_ordered_by_instance() -> None:
    """The first box of each instance is found by bisection."""
    rows = table(row("a", [(1, WHOLE)]))
    found = matched(rows, truth(("a", 2, LEFT), ("a", 1, WHOLE), ("a", 2, FAR)))
    assert found.box_instances.tolist() == [0, 1, 1]
    assert found.boxes.tolist() == [list(WHOLE), list(LEFT), list(FAR)]


def test_right_class_and_right_box() -> None:
    found = matched(table(row("a", [(1, WHOLE)], known(1, WHOLE))), truth(("a", 1, WHOLE)))
    assert found.classified.tolist() == found.localized.tolist() == [[True, True]]
    assert [not found.missing_map[0]] == found.localized_anywhere.tolist() == [True]
    assert found.iou.tolist() == [1]
    assert found.target.tolist() == [0]


@pytest.mark.parametrize(
    ("corners", "hit"), [(LEFT, True), ((0, 0, 49, 100), False), ((0, 0, 49.99, 100), False)]
)
def test_an_iou_of_exactly_one_half_is_a_hit(corners: Any, hit: bool) -> None:
    found = matched(table(row("a", [(1, corners)], known(1, corners))), truth(("a", 1, WHOLE)))
    assert found.localized.tolist() == [[hit, hit]]
    assert found.localized_anywhere.tolist() == [hit]
    assert (found.iou >= 0.5).tolist() == [hit]


def test_a_box_counts_only_against_boxes_of_its_own_label() -> None:
    # The best class lies exactly on a box of another class that the image holds.
    rows = table(row("a", [(1, FAR), (2, WHOLE)], known(1, FAR), known(2, FAR)))
    found = matched(rows, truth(("a", 1, LEFT), ("a", 2, FAR)))
    assert found.classified.tolist() == [[True, True], [False, True]]
    assert found.localized.tolist() == [[False, False], [False, False]]
    assert found.iou.tolist() == [0, 1]


def test_any_true_box_of_the_label_can_be_hit() -> None:
    found = matched(
        table(row("a", [(1, WHOLE)], known(1, WHOLE))), truth(("a", 1, FAR), ("a", 1, LEFT), ("a", 1, WHOLE))
    )
    assert found.localized.tolist() == [[True, True]]
    assert found.iou.tolist() == [1]


def test_top_k_takes_the_first_k_labels_and_the_first_k_pairs() -> None:
    rows = table(row("a", [(label, WHOLE) for label in (7, 6, 5, 4, 3, 2)]))
    found = matched(rows, truth(*(("a", label, WHOLE) for label in (7, 3, 2))))  # 2 has the sixth rank
    assert found.labels.tolist() == [2, 3, 7]
    assert (
        found.classified.tolist() == found.localized.tolist() == [[False, False], [False, True], [True, True]]
    )


def test_several_boxes_of_one_rank_are_several_pairs() -> None:
    ranked = [(1, FAR), (1, FAR), (2, FAR), (3, FAR), (4, FAR), (5, WHOLE)]
    found = matched(table(row("a", ranked)), truth(("a", 5, WHOLE)))
    assert found.classified.tolist() == [[False, True]]
    assert found.localized.tolist() == [[False, False]]
    assert found.localized_anywhere.tolist() == [True]  # the label has a box, at any rank
    second = matched(table(row("a", [(1, FAR), (1, WHOLE)])), truth(("a", 1, WHOLE)))
    assert second.localized.tolist() == [[False, True]]


def test_only_the_first_box_of_the_known_label_counts() -> None:
    found = matched(table(row("a", [(1, FAR)], known(1, LEFT, FAR))), truth(("a", 1, FAR)))
    assert found.iou.tolist() == [0]
    assert found.localized_anywhere.tolist() == [False]
    assert found.localized.tolist() == [[True, True]]


def test_a_label_without_its_own_map_is_localized_by_its_best_ranked_box() -> None:
    rows = table(row("a", [(2, FAR), (1, WHOLE), (1, FAR)], known(3, FAR)))
    found = matched(rows, truth(("a", 1, WHOLE), ("a", 2, WHOLE), ("a", 3, FAR), ("a", 4, FAR)))
    assert found.missing_map.tolist() == [True, True, False, True]
    assert found.target.tolist() == [-1, -1, 0, -1]
    assert found.localized_anywhere.tolist() == [True, False, True, False]
    assert found.iou.tolist() == [0, 0, 1, 0]


def test_a_failed_row_is_wrong_in_every_respect() -> None:
    rows = table(row("a", [(1, WHOLE)], known(1, WHOLE)), broken("b"))
    found = matched(rows, truth(("b", 1, WHOLE), ("a", 1, WHOLE)))
    assert found.classified.tolist() == found.localized.tolist() == [[True, True], [False, False]]
    assert found.missing_map.tolist() == [False, False]  # a failed row does not count as missing
    assert found.target.tolist() == [0, -1]
    assert found.localized_anywhere.tolist() == [True, False]
    assert [ERRORS[error] for error in found.error] == ["correct", "no_box"]
    assert np.isnan(found.size).tolist() == [False, True]


def test_a_label_twice_among_the_targets_counts_once() -> None:
    found = matched(table(row("a", [(1, FAR)], known(1, WHOLE), known(1, FAR))), truth(("a", 1, WHOLE)))
    assert found.target.tolist() == [0]
    assert found.iou.tolist() == [1]


def test_a_label_without_a_box_is_only_classified() -> None:
    true = truth(("a", 1, None), ("a", 2, FAR))
    found = matched(table(row("a", [(1, WHOLE)], known(1, WHOLE))), true)
    assert found.has_boxes.tolist() == [False, True]
    assert found.classified[:, 0].tolist() == [True, False]
    assert not found.localized.any()
    labels_only = matched(table(row("a", [(1, WHOLE)])), Truth.from_rows(["a"], [1]))
    assert labels_only.has_boxes.tolist() == [False]
    assert labels_only.boxes.shape == (0, 4)


def test_no_instances() -> None:
    for rows in (table(), table(row("stray", [(1, WHOLE)])), table(broken("stray"))):
        for true in (truth(("a", 1, WHOLE)), truth(), Truth.from_rows([], [])):
            found = matched(rows, true)
            assert len(found.rows) == len(found.boxes) == 0
            assert found.classified.shape == (0, 2)


OBJECT = (20, 20, 60, 60)  # 1600 square pixels


@pytest.mark.parametrize(
    ("kind", "predicted", "others"),
    [
        ("correct", (20, 20, 60, 60), []),
        ("correct", (20, 20, 60, 40), []),  # IoU 1/2
        # Inside with 5/8 of its area.
        ("part", (20, 20, 60, 39), []),
        ("part", (25, 25, 35, 35), []),
        ("part", (45, 20, 69, 60), []),  # 600 of 960 square pixels
        ("part", (44, 20, 74, 60), []),  # 640 of 1200
        # All of the object, 0.44 of the box.
        ("too_large", (20, 20, 80, 80), []),
        ("too_large", (0, 0, 100, 100), []),
        # 3/4 of the object, 0.48 of the box.
        ("too_large", (30, 10, 80, 60), []),
        # Beside it; then by area.
        ("too_large", (60, 0, 100, 100), []),
        ("too_small", (70, 70, 90, 90), []),
        ("too_small", (70, 70, 110, 110), []),  # as large as the object: not larger
        # 0.25 of the object and half of the box: no more than half, so no part.
        ("too_small", (50, 20, 70, 60), []),
        # 0.7 of the object, 0.4 of the box.
        ("too_large", (20, -40, 48, 60), []),
        # All of both, and more than twice as much.
        ("several_instances", (0, 0, 100, 100), [(70, 70, 90, 90)]),
        # A quarter of the second only: the first decides.
        ("too_large", (0, 0, 100, 100), [(95, 95, 105, 105)]),
        # Half of the box in either: 0.31 of both is enough for several, 0.3 is not.
        ("several_instances", (47.6, 20, 72.4, 60), [(60, 20, 100, 60)]),
        ("too_small", (48, 20, 72, 60), [(60, 20, 100, 60), (300, 300, 400, 400)]),
    ],
)  # fmt: skip
def test_error_categories(kind: str, predicted: Any, others: list[Any]) -> None:
    true = truth(*(("a", 1, corners) for corners in (*others, OBJECT)))
    found = matched(table(row("a", [(1, predicted), (1, OBJECT)], size=(400, 400))), true)
    assert [ERRORS[error] for error in found.error] == [kind]


def test_the_error_is_of_the_first_pair_of_its_row() -> None:
    true = truth(("a", 1, OBJECT), ("a", 2, OBJECT), ("b", 1, OBJECT), ("c", 1, None))
    rows = table(row("a", [(2, (25, 25, 30, 30)), (1, OBJECT)]), broken("b"), row("c", [(1, OBJECT)]))
    found = matched(rows, true)
    names = [ERRORS[error] for error in found.error]
    assert names[:3] == ["wrong_class", "part", "no_box"]
    assert found.has_boxes.tolist() == [True, True, True, False]


def test_size_errors_are_relative_to_the_true_box_that_is_covered_most() -> None:
    # A fifth of the small object and nothing of the large one: larger than the former.
    true = truth(("a", 1, (0, 0, 10, 10)), ("a", 1, (100, 100, 300, 300)))
    found = matched(table(row("a", [(1, (8, 0, 48, 10))], size=(400, 400))), true)
    assert ERRORS[found.error[0]] == "too_large"
    found = matched(table(row("a", [(1, (60, 60, 104, 110))], size=(400, 400))), true)
    assert ERRORS[found.error[0]] == "too_small"


def test_object_size_is_that_of_the_largest_box() -> None:
    true = truth(
        ("a", 1, (0, 0, 20, 10)), ("a", 1, (0, 0, 50, 20)), ("b", 1, (0, 0, 300, 300)), ("b", 2, None)
    )
    found = matched(
        table(row("a", [(1, WHOLE)], size=(200, 50)), row("b", [(1, WHOLE)], size=(200, 50))), true
    )
    assert found.size[:2].tolist() == [0.1, 1]  # a box that leaves its image covers it all
    assert np.isnan(found.size[2])


def test_the_inclusive_convention_compares_the_corners_in_the_file() -> None:
    # 0..9 x 0..9 against 5..9 x 0..9: half of it by pixels. Truth is read to half-open corners.
    half, whole = (5, 0, 9, 9), (0, 0, 10, 10)
    rows = table(row("a", [(1, half)], known(1, half)))
    named, unnamed = (truth(("a", 1, whole), inclusive=flag) for flag in (True, False))
    inclusive = criteria(inclusive=True)
    assert matched(rows, named, inclusive).iou.tolist() == [0.5]
    assert matched(rows, named, inclusive).localized.tolist() == [[True, True]]
    assert matched(rows, named).iou.tolist() == pytest.approx([36 / 100])
    assert matched(rows, unnamed, inclusive).iou.tolist() == pytest.approx([50 / 121])
    assert matched(rows, named, inclusive).boxes.tolist() == [[0, 0, 10, 10]]  # half-open whatever is asked
    assert matched(rows, named).boxes.tolist() == [[0, 0, 10, 10]]


def test_the_error_of_an_object_of_one_pixel_is_as_in_the_other_convention() -> None:
    rows = table(row("a", [(1, (50, 50, 60, 60))]))
    true = truth(("a", 1, (5, 5, 6, 6)), inclusive=True)
    for how in (criteria(), criteria(inclusive=True)):
        found = matched(rows, true, how)
        assert ERRORS[found.error[0]] == "too_large"
        assert found.size.tolist() == pytest.approx([1e-4])


# A map of 4 x 4 cells in a frame of 4 pixels: a cell is 25 pixels of an image of 100.
CAM = np.zeros((4, 4))
CAM[:2, :2] = 1
CAM[:2, 2] = 0.4
CAM[3, 3] = 0.5
TOP_LEFT, TOP, BOTTOM = (0, 0, 50, 50), (0, 0, 75, 50), (75, 75, 100, 100)


def remade(rule: str, true: Truth, *, inclusive: bool = False) -> Matches:
    """Return a row whose stored boxes are elsewhere and whose maps of classes 1, 2 and 3 are equal."""
    how = criteria(4, (3, 4, 4), box_rule=rule, inclusive=inclusive)
    stored = row("a", [(1, FAR), (2, FAR), (3, FAR)], known(3, FAR, cam=CAM), cams=[CAM] * 3)
    return matched(table(stored, shape=(3, 4, 4)), true, how)


@pytest.mark.parametrize(("rule", "corners"), [("cam20", TOP), ("cam:0.45", TOP_LEFT), ("cam:0.6", TOP_LEFT)])
def test_boxes_are_made_anew_by_the_rule(rule: str, corners: Any) -> None:
    found = remade(rule, truth(("a", 1, corners), ("a", 3, corners)))
    assert found.localized.tolist() == [[True, True], [False, True]]
    assert found.iou.tolist() == [0, 1]  # class 1 has no map of its own
    assert found.localized_anywhere.tolist() == [True, True]
    assert remade(rule, truth(("a", 1, FAR))).localized.tolist() == [[False, False]]


def test_several_new_boxes_of_one_rank_are_several_pairs() -> None:
    # Six pairs: 1 TOP, 1 BOTTOM, 2 TOP, 2 BOTTOM, 3 TOP, 3 BOTTOM.
    true = truth(("a", 1, BOTTOM), ("a", 2, BOTTOM), ("a", 3, BOTTOM))
    found = remade("cam20-multi", true)
    assert found.localized.tolist() == [[False, True], [False, True], [False, False]]
    assert found.iou.tolist() == [0, 0, 0]  # the first box of the label's own map


def test_a_label_after_the_fifth_pair_is_localized_by_stored_and_new_boxes() -> None:
    places = [(label, TOP) for label in (7, 6, 5, 4, 3, 2, 1)]
    true = truth(("a", 1, TOP), ("a", 2, TOP))
    stored = table(row("a", places, cams=[CAM] * 7), shape=(7, 4, 4))
    for rule in (None, "cam20"):
        found = matched(stored, true, criteria(4, (7, 4, 4), box_rule=rule))
        assert found.localized_anywhere.tolist() == [True, True]
        assert not found.localized.any()


def test_failed_rows_get_no_new_boxes() -> None:
    rows = table(broken("b"), row("a", [(1, FAR)], cams=[CAM]), broken("c"), shape=(1, 4, 4))
    how = criteria(4, (1, 4, 4), box_rule="cam20")
    found = matched(rows, truth(("a", 1, TOP), ("b", 1, TOP), ("c", 1, None)), how)
    assert found.localized[:, 0].tolist() == [False, True, False]


def test_stored_boxes_equal_new_boxes_of_the_same_rule(tiny_localizer: Any) -> None:
    """Rows that localize wrote are matched by their stored boxes and by new boxes of the same rule."""
    from support.factories import make_items, photograph
    from support.row_tables import predictions_table

    images = [photograph(seed, width=30 + seed) for seed in range(6)]
    made = tiny_localizer.localize(images, labels=[[seed % 3] for seed in range(6)])
    rows = predictions_table(make_items(*map(str, range(6))), 1, made)
    true = truth(*((str(n), n % 3, (2, 3, 22, 30)) for n in range(6)))
    stored, again = (
        matched(rows, true, criteria(shape=(3, 8, 4), box_rule=rule)) for rule in (None, "cam20")
    )
    assert stored.iou.tolist() == again.iou.tolist()
    assert stored.localized.tolist() == again.localized.tolist()
    assert stored.error.tolist() == again.error.tolist()
    assert stored.iou.max() > 0


def test_targets_of_a_slice_are_those_of_its_rows() -> None:
    cams = np.arange(16).reshape(4, 2, 2)
    rows = table(
        row("a", [(1, WHOLE)], known(1, WHOLE, cam=cams[0]), known(2, WHOLE, cam=cams[1])),
        broken("b"),
        row("c", [(1, WHOLE)], known(3, WHOLE, cam=cams[2])),
        row("d", [(1, WHOLE)], known(1, FAR, cam=cams[3])),
    )
    for part in (rows, rows.slice(1), rows.slice(2, 1), rows.slice(1, 1), rows.slice(4)):
        targets = read_targets(part["targets"], criteria())
        expected = [
            (n, target["label"], target["cam"])
            for n, r in enumerate(part.to_pylist())
            for target in r["targets"]
        ]
        assert targets.rows.tolist() == [n for n, _, _ in expected]
        assert targets.labels.tolist() == [label for _, label, _ in expected]
        assert [cam_hw.tobytes() for cam_hw in targets.cams_Nhw] == [cam for _, _, cam in expected]
        assert targets.cams_Nhw.dtype == np.float16


def test_a_slice_is_matched_like_its_rows_alone() -> None:
    true = truth(("c", 1, WHOLE), ("d", 1, FAR), ("d", 2, None))
    rows = [
        row("a", [(1, FAR), (2, FAR)], known(1, FAR)),
        broken("b"),
        row("c", [(1, FAR), (1, WHOLE)], known(1, WHOLE)),
        row("d", [(2, FAR), (1, FAR)], known(1, FAR)),
    ]
    sliced, alone = matched(table(*rows).slice(2), true), matched(table(*rows[2:]), true)
    for name in Matches.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(sliced, name), getattr(alone, name), err_msg=name)


def test_criteria_map_boxes_through_the_frame_of_the_recipe() -> None:
    recipe = make_recipe(input_size=224, resize="crop", views="ten-crop")
    assert Criteria(recipe.frame_spec, CamShape(5, 32, 32)).frame(300, 200) == Frame(300, 200, 256, "crop")


def test_the_columns_are_a_part_s() -> None:
    assert set(COLUMNS) <= set(table().schema.names)
