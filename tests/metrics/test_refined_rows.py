"""Boxes and scores of stored refined maps, on rows whose metrics are computed by hand."""

from dataclasses import replace

import numpy as np
import pytest

from camworker.errors import UsageError
from camworker.metrics.summary_json import to_json
from camworker.schemas import CamShape
from support.prediction_rows import (
    BY_CELLS,
    CELL,
    HALF,
    STEP,
    WHOLE,
    broken,
    config,
    figures,
    known,
    row,
    summary_of,
    table,
    tallied,
    truth,
)

# Stored as 255 sqrt(M): M is 1 in the upper left quarter and (51 / 255)^2 = 0.04 in the upper right one. The
# mean is (4 * 1 + 4 * 0.04) / 16 = 0.26: fine:1 gives the quarter, and fine:0.1 (above 0.026) the upper half.
# The raw map STEP gives the upper half by cam20, and its first cell by cam:0.5.
REFINED = np.zeros((4, 4))
REFINED[:2, :2], REFINED[:2, 2:] = 255, 51
QUARTER = (0, 0, 50, 50)
NOTHING = np.zeros((4, 4))

REFINEMENT = replace(BY_CELLS, cam_shape=CamShape(2, 4, 4), refined_shape=CamShape(1, 4, 4))
IDS = ("a", "b", "c")
TRUE = truth(("a", 1, QUARTER), ("b", 1, HALF), ("c", 1, CELL))
ROWS = table(
    *(
        row(
            image_id,
            [(1, WHOLE), (2, WHOLE)],
            known(1, WHOLE, cam=STEP, refined=REFINED),
            cams=[STEP, STEP],
            refined=[REFINED],
        )
        for image_id in IDS
    ),
    broken("d"),
    shape=(2, 4, 4),
)


@pytest.mark.parametrize(
    ("rule", "ious"),
    [
        (None, (0.25, 0.5, 0.0625)),  # the boxes of the rows, over the whole images
        ("fine:1", (1, 0.5, 0.25)),
        ("fine:0.1", (0.5, 1, 0.125)),
        ("cam20", (0.5, 1, 0.125)),
        ("cam:0.5", (0.25, 0.125, 1)),
    ],
)
def test_boxes_are_made_anew_from_the_maps_that_the_rule_is_for(
    rule: str | None, ious: tuple[float, ...]
) -> None:
    result = figures(ROWS, TRUE, config(replace(REFINEMENT, box_rule=rule)))
    shares = {str(delta): sum(iou >= delta for iou in ious) / 3 for delta in (0.3, 0.5, 0.7)}
    assert result["gt_known_at"] == shares
    assert result["top1_localization_error"] == pytest.approx(1 - shares["0.5"])


def test_refined_and_raw_maps_are_evaluated_in_one_pass() -> None:
    what = config(replace(REFINEMENT, box_rule="fine:1"), raw_rule="cam20")
    assert set(what.columns) >= {"cams", "refined"}
    result = figures(ROWS, TRUE, what)
    assert result["gt_known_at"] == {"0.3": 2 / 3, "0.5": 2 / 3, "0.7": 1 / 3}
    assert result["raw"]["gt_known_at"] == {"0.3": 2 / 3, "0.5": 2 / 3, "0.7": 1 / 3}
    assert (result["raw"]["errors"]["part"], result["raw"]["errors"]["too_large"]) == (0, 1)
    assert result["errors"]["too_large"] == 1
    alone = figures(ROWS, TRUE, config(replace(REFINEMENT, box_rule="cam20")))
    assert {
        name: alone[name] for name in result["raw"] if name in alone and name not in ("raw", "box_rule")
    } == {name: value for name, value in result["raw"].items() if name not in ("box_rule", "difference")}


def test_stored_boxes_need_no_column_of_maps() -> None:
    assert set(config(REFINEMENT).columns).isdisjoint({"cams", "refined"})


def test_metrics_of_lower_ranks_have_no_value_where_only_the_best_class_has_a_refined_map() -> None:
    what = config(replace(REFINEMENT, box_rule="fine:1"))
    summary = summary_of(tallied(ROWS, TRUE, what), TRUE, what, best_class_only=True)
    missing = {
        name for name, estimate in summary.estimates.items() if "refined map" in estimate.reason_missing
    }
    assert missing == {"top5_localization_error"}
    assert to_json(summary)["top5_localization_error"] is None
    assert summary.value("corloc") == 2 / 3  # every label has a map of its own
    assert summary.per_class[1].values["top5_localization_accuracy"] is None
    assert summary.per_class[1].values["top1_localization_accuracy"] == 2 / 3

    # Without known labels, a label's box could be that of a lower rank, which is not there.
    rows = table(row("a", [(2, WHOLE), (1, WHOLE)], cams=[STEP, STEP], refined=[REFINED]), shape=(2, 4, 4))
    true = truth(("a", 1, QUARTER))
    summary = summary_of(tallied(rows, true, what), true, what, best_class_only=True)
    assert "refined map" in summary.estimates["corloc"].reason_missing
    assert summary.per_class[1].values["corloc"] is None


def test_with_the_refined_maps_of_all_classes_every_metric_has_a_value() -> None:
    how = replace(REFINEMENT, refined_shape=CamShape(2, 4, 4), box_rule="fine:1")
    rows = table(
        row("a", [(2, WHOLE), (1, WHOLE)], cams=[STEP, STEP], refined=[NOTHING, REFINED]), shape=(2, 4, 4)
    )
    result = figures(rows, truth(("a", 1, QUARTER)), config(how))
    assert result["top1_localization_error"] == 1
    assert result["top5_localization_error"] == 0
    assert result["corloc"] == 1


def test_a_refined_map_of_zeros_gives_the_box_over_the_image() -> None:
    target = known(1, QUARTER, cam=STEP, refined=NOTHING)
    rows = table(row("a", [(1, QUARTER)], target, cams=[STEP], refined=[NOTHING]), shape=(1, 4, 4))
    how = replace(REFINEMENT, cam_shape=CamShape(1, 4, 4), box_rule="fine:1")
    assert figures(rows, truth(("a", 1, WHOLE)), config(how))["gt_known_at"]["0.7"] == 1


@pytest.mark.parametrize(("maps", "threshold", "pointing"), [("raw", 0.25, 1), ("refined", 0.04, 0)])
def test_sweeps_and_the_pointing_game_are_about_the_maps_that_are_asked_for(
    maps: str, threshold: float, pointing: int
) -> None:
    """The sweep of cam:T finds the upper half below the value of its lower part in either map."""
    moved = np.roll(REFINED, 2, axis=0)  # the same in the lower half
    target = known(1, WHOLE, cam=STEP, refined=moved)
    rows = table(row("a", [(1, WHOLE)], target, cams=[STEP], refined=[moved]), shape=(1, 4, 4))
    how = replace(REFINEMENT, cam_shape=CamShape(1, 4, 4), maps=maps)  # type: ignore[arg-type]
    half = HALF if maps == "raw" else (0, 50, 100, 100)
    result = figures(rows, truth(("a", 1, half)), config(how, sweep="cam"))
    hits = np.array(result["sweep"]["max_box_acc"])
    assert (hits[result["sweep"]["thresholds"] < np.array(threshold)] == 1).all()
    assert hits[np.searchsorted(result["sweep"]["thresholds"], threshold) + 1 :].max() == (maps == "refined")
    beyond = figures(rows, truth(("a", 1, CELL)), config(how, sweep="cam"))
    assert beyond["pointing_game_accuracy"] == pointing


def test_rows_without_refined_maps_refuse_a_rule_for_them() -> None:
    rows = table(row("a", [(1, WHOLE)], known(1, WHOLE, cam=STEP), cams=[STEP]), shape=(1, 4, 4))
    with pytest.raises(UsageError, match="hold no refined maps"):
        tallied(rows, truth(("a", 1, WHOLE)), config(replace(BY_CELLS, box_rule="fine:1")))
