"""Metrics: hand-computed cases, empty cases, and tallies that merge to what one pass gives."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, poisson

from camworker.metrics import REPLICATES, Tally, _poisson_weights, wilson
from camworker.records import CamShape, predictions_schema
from camworker.truth import Truth

SCHEMA = predictions_schema(CamShape(5, 2, 2))
COLUMNS = ["image_id", "status", "labels", "boxes", "targets"]
WHOLE, LEFT, FAR = (0, 0, 10, 10), (0, 0, 5, 10), (90, 90, 99, 99)

Box = tuple[int, int, int, int]


def box(label: int, corners: Box) -> dict[str, Any]:
    return {"label": label, "score": 0.5, **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))}


def row(
    image_id: str, ranked: list[tuple[int, Box]], targets: dict[int, Box] | None = None
) -> dict[str, Any]:
    """A row whose class at each rank has one box, and whose known labels have one each."""
    return {
        "image_id": image_id,
        "status": "ok",
        "labels": [label for label, _ in ranked],
        "boxes": [{"rank": rank, **box(*pair)} for rank, pair in enumerate(ranked, 1)],
        "targets": [
            {"label": label, "score": 0.5, "cam": [0] * 4, "boxes": [box(label, corners), box(label, FAR)]}
            for label, corners in (targets or {}).items()
        ],
    }


def broken(image_id: str) -> dict[str, Any]:
    return {"image_id": image_id, "status": "decode_error", "labels": [], "boxes": [], "targets": []}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), pa.schema([SCHEMA.field(name) for name in COLUMNS]))


def truth(*rows: tuple[str, int, Box]) -> Truth:
    rows = tuple(sorted(rows))
    return Truth(
        np.array([r[0] for r in rows], object),
        np.array([r[1] for r in rows], np.int32),
        np.array([r[2] for r in rows], np.float32).reshape(-1, 4),
    )


def figures(rows: pa.Table, known: Truth, places: int = 5) -> dict[str, Any]:
    return Tally().update(rows, known).compute(known, places)


def test_right_class_and_right_box_is_no_error() -> None:
    result = figures(table(row("a", [(1, WHOLE)], {1: WHOLE})), truth(("a", 1, WHOLE)))
    assert result["top1_classification_error"] == result["top1_localization_error"] == 0
    assert result["gt_known_localization_accuracy"] == 1


def test_an_iou_of_exactly_one_half_is_a_hit_and_less_is_none() -> None:
    known = truth(("a", 1, WHOLE))
    assert figures(table(row("a", [(1, LEFT)])), known)["top1_localization_error"] == 0
    assert figures(table(row("a", [(1, (0, 0, 4, 10))])), known)["top1_localization_error"] == 1


def test_a_box_counts_only_against_boxes_of_its_own_label() -> None:
    # The best class lies exactly on a box of another class that the image also holds.
    rows = table(row("a", [(1, FAR), (2, WHOLE)], {1: FAR, 2: FAR}))
    result = figures(rows, truth(("a", 1, LEFT), ("a", 2, FAR)))
    assert result["top5_localization_error"] == 1
    assert result["gt_known_localization_accuracy"] == 0.5  # label 2's own map is at FAR
    assert result["top5_classification_error"] == 0
    assert result["top1_classification_error"] == 0.5


def test_any_box_of_the_label_will_do() -> None:
    known = truth(("a", 1, FAR), ("a", 1, WHOLE))
    result = figures(table(row("a", [(1, WHOLE)], {1: WHOLE})), known)
    assert result["units"] == 1
    assert result["top1_localization_error"] == 0
    assert result["gt_known_localization_accuracy"] == 1


def test_top_k_takes_the_first_k_pairs() -> None:
    ranked = [(label, WHOLE) for label in (5, 4, 3, 2, 1, 0)]
    rows = table(row("a", ranked), row("b", ranked))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 0, WHOLE)))  # fifth and sixth place
    assert result["top1_classification_error"] == 1
    assert result["top5_classification_error"] == 0.5
    assert result["top5_localization_error"] == 0.5


def test_a_rank_with_several_boxes_uses_up_several_of_the_k_pairs() -> None:
    several = row("a", [(1, FAR), (2, FAR), (3, FAR), (4, FAR), (5, WHOLE)])
    several["boxes"].insert(1, {"rank": 1, **box(1, FAR)})
    result = figures(table(several), truth(("a", 5, WHOLE)))
    assert result["top5_classification_error"] == 0
    assert result["top5_localization_error"] == 1


def test_only_the_first_box_of_the_known_label_counts() -> None:
    rows = table(row("a", [(1, FAR)], {1: LEFT}))  # its second box, FAR, would hit
    assert figures(rows, truth(("a", 1, FAR)))["gt_known_localization_accuracy"] == 0


def test_a_failed_row_with_truth_is_wrong_by_every_figure() -> None:
    rows = table(row("a", [(1, WHOLE)], {1: WHOLE}), broken("b"))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, WHOLE)))
    assert result["failed"] == {"decode_error": 1}
    assert result["top1_classification_error"] == result["top5_localization_error"] == 0.5
    assert result["gt_known_localization_accuracy"] == 0.5  # not null: it lacks no map, it failed
    assert result["units_without_target"] == 0


def test_gt_known_is_null_when_a_known_label_has_no_map() -> None:
    rows = table(row("a", [(1, WHOLE)], {1: WHOLE}), row("b", [(1, WHOLE)]))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, WHOLE)))
    assert result["gt_known_localization_accuracy"] is None
    assert result["gt_known_localization_accuracy_ci95"] is None
    assert result["units_without_target"] == 1


def test_what_does_not_match_is_counted_and_judges_nothing() -> None:
    rows = table(row("a", [(1, WHOLE)]), row("stray", [(1, WHOLE)]))
    result = figures(rows, truth(("a", 1, WHOLE), ("absent", 1, WHOLE), ("absent", 1, FAR)))
    assert (result["images_with_truth"], result["images_without_truth"]) == (1, 1)
    assert result["truth_without_image"] == 1
    assert result["top1_localization_error"] == 0


def test_without_anything_to_judge_figures_are_null() -> None:
    for rows in (table(), table(row("stray", [(1, WHOLE)])), table(broken("stray"))):
        result = figures(rows, truth(("a", 1, WHOLE)))
        assert result["units"] == 0
        assert all(result[name] is None for name in result if "error" in name or "accuracy" in name)


def test_truth_without_boxes_supports_classification_only() -> None:
    known = Truth(np.array(["a"], object), np.array([1], np.int32), None)
    result = figures(table(row("a", [(1, WHOLE)], {1: WHOLE})), known)
    assert result["top1_classification_error"] == 0
    assert result["top1_localization_error"] is None
    assert result["gt_known_localization_accuracy"] is None


def test_top5_needs_five_places() -> None:
    result = figures(table(row("a", [(1, WHOLE)])), truth(("a", 1, WHOLE)), places=1)
    assert result["top1_classification_error"] == 0
    assert result["top5_classification_error"] is None
    assert result["top5_localization_error"] is None


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (186, 300), (1, 1)])
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_an_error_has_the_interval_of_its_wrong_share() -> None:
    rows = table(row("a", [(1, WHOLE)]), row("b", [(2, WHOLE)]), row("c", [(1, WHOLE)]))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, WHOLE), ("c", 1, WHOLE)))
    assert result["top1_classification_error"] == pytest.approx(1 / 3)
    assert result["top1_classification_error_ci95"] == pytest.approx(wilson(1, 3))


def test_bootstrap_weights_are_poisson_and_depend_on_the_id_alone() -> None:
    ids = pa.array([f"image {n}" for n in range(500)]).to_pandas()
    weights = _poisson_weights(ids)
    assert weights.shape == (500, REPLICATES)
    counts = np.bincount(weights.ravel(), minlength=6)[:6] / weights.size
    assert counts == pytest.approx(poisson(1).pmf(range(6)), abs=0.005)
    # Columns and rows are as good as independent: means stay within five standard errors.
    assert abs(weights.mean(0) - 1).max() < 5 / math.sqrt(500)
    assert abs(np.corrcoef(weights[:, :20].T)[np.triu_indices(20, 1)]).max() < 0.25
    assert (_poisson_weights(ids[::-1])[::-1] == weights).all()


def test_the_bootstrap_takes_over_where_images_have_several_labels() -> None:
    rows = [row(str(n), [(1, WHOLE), (2, WHOLE)]) for n in range(60)]
    known = truth(*((str(n), label, WHOLE) for n in range(60) for label in (1, 2 + n % 2)))
    result = figures(table(*rows), known)
    low, high = result["top5_classification_error_ci95"]
    assert result["top5_classification_error"] == 0.25
    assert 0.25 - 0.1 < low < 0.25 < high < 0.25 + 0.1


LABELS = st.integers(0, 3)
BOXES = st.sampled_from([WHOLE, LEFT, FAR])
ROW = st.one_of(
    st.builds(
        lambda pairs, targets: ("ok", pairs, targets),
        st.lists(st.tuples(LABELS, BOXES), min_size=1, max_size=5, unique_by=lambda pair: pair[0]),
        st.dictionaries(LABELS, BOXES, max_size=3),
    ),
    st.just(("broken", [], {})),
)


@given(
    st.lists(ROW, min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 14), LABELS, BOXES), min_size=1, max_size=20),
    st.data(),
)
def test_any_split_and_any_order_gives_the_figures_of_one_pass(
    drawn: list, true: list[tuple[int, int, Box]], data: st.DataObject
) -> None:
    rows = [
        row(str(n), pairs, targets) if status == "ok" else broken(str(n))
        for n, (status, pairs, targets) in enumerate(drawn)
    ]
    known = truth(*((str(image), label, corners) for image, label, corners in true))
    whole = figures(table(*rows), known)
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [[rows[n] for n in order[:cut]], [rows[n] for n in order[cut:]]]
    left, right = (Tally().update(table(*part), known) for part in parts)
    assert left.merge(right).compute(known, 5) == whole
