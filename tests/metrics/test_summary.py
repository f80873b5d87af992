"""Tests of summaries: metrics computed by hand, and when they are null."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score

from camworker.boxes.maxboxacc import score_map
from camworker.errors import UsageError
from camworker.metrics.confidence import poisson_weights
from camworker.metrics.definitions import METRICS
from camworker.metrics.ground_truth.truth import Truth, hash_ids
from camworker.metrics.summary_json import to_json
from camworker.metrics.tally import Tally
from support.factories import encode
from support.prediction_rows import (
    BY_CELLS,
    CELL,
    FAR,
    HALF,
    RIGHT,
    STEP,
    WHOLE,
    A,
    broken,
    config,
    criteria,
    figures,
    known,
    row,
    stepped,
    summary_of,
    table,
    tallied,
    truth,
)

NAMES = [metric.name for metric in METRICS if not metric.name.startswith("gt_known_at_")]
MAPPED = ("gt_known_localization_accuracy", "max_box_acc", "max_box_acc_v2", "pointing_game_accuracy")
SWEPT = (
    *("max_box_acc", "max_box_acc_v2", "max_box_acc_at", "optimal_threshold"),
    *("max_box_acc_threshold", "max_box_acc_fixed_threshold", "max_box_acc_at_fixed_threshold"),
)


def test_everything_right() -> None:
    result = figures(
        table(row("a", [(1, WHOLE)], known(1, WHOLE, cam=np.ones((2, 2))))), A, config(sweep="cam")
    )
    for name in NAMES:
        if name != "pxap":
            assert result[name] == (0 if "error" in name else 1), name
    assert result["gt_known_at"] == result["max_box_acc_at"] == {"0.3": 1, "0.5": 1, "0.7": 1}
    assert result["optimal_threshold"] == {"0.3": 0, "0.5": 0, "0.7": 0}  # the lowest of the best
    assert (result["images"], result["failed"], result["instances"]) == (1, {}, 1)


def test_shares_are_of_instances_and_localization_of_those_with_boxes() -> None:
    rows = table(
        row("a", [(1, WHOLE), (2, FAR)], known(1, WHOLE), known(2, FAR)),
        row("b", [(2, WHOLE)], known(1, WHOLE)),
        broken("c"),
        row("stray", [(3, WHOLE)]),
    )
    true = truth(
        *(("a", 1, WHOLE), ("a", 2, WHOLE), ("a", 3, None)),
        *(("b", 1, FAR), ("b", 1, WHOLE), ("c", 1, WHOLE), ("absent", 1, WHOLE)),
    )
    result = figures(rows, true)
    assert (result["images"], result["failed"]) == (4, {"decode_error": 1})
    assert (result["images_with_truth"], result["images_without_truth"]) == (3, 1)
    assert result["truth_without_image"] == 1
    assert (result["instances"], result["instances_with_boxes"], result["instances_without_target"]) == (
        5,
        4,
        0,
    )
    assert result["top1_classification_error"] == 4 / 5  # a holds 1, 2 and 3; b is taken for 2
    assert result["top5_classification_error"] == 3 / 5
    assert result["top1_localization_error"] == 3 / 4
    assert result["top5_localization_error"] == 3 / 4
    assert result["gt_known_localization_accuracy"] == 2 / 4
    # Class 1: a and b of a, b, c. Class 2: none of one. Class 3 has no box.
    assert result["corloc"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_failed_row_with_truth_is_wrong_by_every_metric() -> None:
    rows = table(row("a", [(1, WHOLE)], known(1, WHOLE, cam=np.ones((2, 2)))), broken("b"))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, WHOLE)), config(sweep="cam"))
    assert result["instances_without_target"] == 0
    for name in NAMES:
        if name != "pxap":
            assert result[name] == 0.5, name


def test_metrics_that_need_own_maps_are_null_without_them() -> None:
    rows = table(RIGHT, row("b", [(1, WHOLE)]))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, WHOLE)))
    assert result["instances_without_target"] == 1
    for name in MAPPED:
        assert result[name] is result[f"{name}_ci95"] is None
    assert all(result[name] is None for name in SWEPT)
    assert result["corloc"] == 1
    assert result["top1_localization_error"] == 0
    # A label without a box needs no map.
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, None)))
    assert result["instances_without_target"] == 0
    assert result["gt_known_localization_accuracy"] == 1


def test_details_do_not_count_instances_without_a_map_as_wrong() -> None:
    rows = table(RIGHT, row("b", [(1, WHOLE)]), row("c", [(2, WHOLE)], known(2, WHOLE)))
    true = truth(("a", 1, WHOLE), ("b", 1, WHOLE), ("c", 2, WHOLE))
    tally = tallied(rows, true)
    summary = summary_of(tally, true)
    beside = to_json(summary)
    assert beside["sweep"] is None
    assert beside["by_size"][-1]["instances"] == 3
    assert beside["by_size"][-1]["gt_known_localization_accuracy"] is None
    assert beside["by_size"][-1]["top1_localization_accuracy"] == 1
    assert sum(beside["iou_histogram"]["instances"]) == 2
    one, two = (result.values for result in summary.per_class[1:3])
    assert one["gt_known_localization_accuracy"] is one["pointing_game_accuracy"] is None
    assert one["corloc"] == two["gt_known_localization_accuracy"] == 1


def test_top5_needs_five_ranked_classes() -> None:
    result = figures(table(RIGHT), A, ranked_classes=4)
    assert result["top1_classification_error"] == result["top1_localization_error"] == 0
    assert result["top5_classification_error"] is result["top5_classification_error_ci95"] is None
    assert result["top5_localization_error"] is result["top5_localization_error_ci95"] is None
    assert figures(table(RIGHT), A, ranked_classes=5)["top5_localization_error"] == 0


def test_max_box_acc_is_null_without_a_sweep() -> None:
    result = figures(table(RIGHT), A, config(sweep=None))
    assert all(result[name] is None for name in SWEPT)
    assert result["max_box_acc_ci95"] is result["sweep"] is None
    assert result["gt_known_localization_accuracy"] == 1


def test_without_boxes_there_is_classification_only() -> None:
    for true in (truth(("a", 1, None)), Truth.from_rows(["a"], [1])):
        result = figures(table(RIGHT), true)
        assert result["top1_classification_error"] == result["top5_classification_error"] == 0
        assert all(result[name] is None for name in NAMES if "classification" not in name)
        assert result["baselines"] is None
        assert sum(result["errors"].values()) == sum(result["iou_histogram"]["instances"]) == 0


def test_all_metrics_are_null_without_instances() -> None:
    for rows in (table(), table(row("stray", [(1, WHOLE)])), table(broken("stray"))):
        result = figures(rows, A)
        assert (result["instances"], result["truth_without_image"]) == (0, 1)
        assert result["images_without_truth"] == rows.num_rows
        assert all(result[name] is result[f"{name}_ci95"] is None for name in NAMES)
        assert result["calibration"]["expected_calibration_error"] is None
        json.dumps(result, allow_nan=False)


def test_a_truth_without_rows() -> None:
    result = figures(table(RIGHT), truth())
    assert (result["images_without_truth"], result["truth_without_image"]) == (1, 0)
    assert all(result[name] is None for name in NAMES)


def test_two_images_of_one_stem_are_one_of_the_truth() -> None:
    rows = table(row("a.jpg", [(1, WHOLE)]), row("a.png", [(1, WHOLE)]))
    result = figures(rows, truth(("a", 1, WHOLE), ("b", 1, WHOLE), stems=True))
    assert result["images_with_truth"] == 2
    assert result["truth_without_image"] == 1  # b


def test_everything_can_be_written_as_json() -> None:
    result = figures(table(RIGHT, broken("b")), truth(("a", 1, WHOLE), ("b", 1, FAR)))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_max_box_acc_takes_the_threshold_that_is_best_for_all() -> None:
    rows, true = stepped(HALF, HALF, CELL)
    result = figures(rows, true, config(BY_CELLS, sweep="cam"))
    assert result["max_box_acc"] == result["max_box_acc_v2"] == 2 / 3
    assert result["max_box_acc_threshold"] == 0
    assert result["max_box_acc_fixed_threshold"] == 2 / 3  # at 0.2
    assert result["max_box_acc_at_fixed_threshold"] == {"0.3": 2 / 3, "0.5": 2 / 3, "0.7": 2 / 3}
    sweep = result["sweep"]
    assert sweep["rule"] == "cam"
    assert sweep["thresholds"] == [n / 100 for n in range(100)]
    assert sweep["max_box_acc"] == sweep["0.7"] == [2 / 3] * 25 + [1 / 3] * 75
    rows, true = stepped(HALF, CELL, CELL)
    result = figures(rows, true, config(BY_CELLS, sweep="cam"))
    assert (result["max_box_acc"], result["max_box_acc_threshold"]) == (2 / 3, 0.25)
    assert result["max_box_acc_fixed_threshold"] == 1 / 3


def test_v2_has_a_threshold_for_each_iou_and_uses_any_component() -> None:
    two = np.zeros((4, 4))
    two[:2, :2] = 0.5  # the largest: 0, 0, 50, 50
    two[3, 3] = 1  # 75, 75, 100, 100
    rows = table(*(row(i, [(1, WHOLE)], known(1, WHOLE, cam=two)) for i in "abc"), shape=(1, 4, 4))
    # 0.64 of the larger one until 0.5; all of the dot at every threshold; 0.36 of the dot, likewise.
    true = truth(("a", 1, (0, 0, 40, 40)), ("b", 1, (75, 75, 100, 100)), ("c", 1, (75, 75, 90, 90)))
    result = figures(rows, true, config(BY_CELLS, sweep="cam"))
    assert result["max_box_acc_at"] == {"0.3": 1, "0.5": 2 / 3, "0.7": 1 / 3}
    assert result["optimal_threshold"] == {"0.3": 0, "0.5": 0, "0.7": 0}
    assert result["max_box_acc_v2"] == pytest.approx((1 + 2 / 3 + 1 / 3) / 3)
    # V1: a below 0.5; from there the dot is the largest, and b.
    assert (result["max_box_acc"], result["max_box_acc_threshold"]) == (1 / 3, 0)


@pytest.mark.parametrize(("share", "delta"), [(30, "0.3"), (50, "0.5"), (70, "0.7")])
def test_an_iou_of_exactly_delta_is_a_hit(share: int, delta: str) -> None:
    for width, hit in ((share, 1), (share - 0.01, 0)):
        rows = table(row("a", [(1, WHOLE)], known(1, WHOLE)))  # no positive value: the whole image
        result = figures(rows, truth(("a", 1, (0, 0, width, 100))), config(sweep="cam"))
        assert result["max_box_acc_at"][delta] == hit


def test_the_maxboxacc_sweep_by_hand() -> None:
    """Two rectangles in the 224x224 square: maxima count as pixels of a box, and 223 is the last one."""
    map_HW = np.zeros((224, 224))
    map_HW[:, :112] = 0.5  # 0, 0, 112, 223 until floor(255 tau) is 127: tau 0.5
    map_HW[:56, :56] = 1  # 0, 0, 56, 56
    rows = table(
        *(row(i, [(1, WHOLE)], known(1, WHOLE, cam=map_HW), size=(448, 224)) for i in "ab"),
        shape=(1, 224, 224),
    )
    true = truth(("a", 1, (0, 0, 225, 224)), ("b", 1, (0, 0, 113, 56)))
    result = figures(rows, true, config(criteria(224, (1, 224, 224))))
    # a: 112.5 is cut to 112, 224 stays: 113 x 225 against 113 x 224 pixels. b: 56.5 is cut to 56.
    assert result["sweep"]["max_box_acc"] == [0.5] * 100
    assert result["sweep"]["0.7"] == [0.5] * 100
    far = figures(
        rows, truth(("a", 1, (0, 0, 112, 224)), ("b", 1, FAR)), config(criteria(224, (1, 224, 224)))
    )
    # 57 x 225 against 113 x 224: 0.504 before, and 57 x 57 against 57 x 225 pixels after.
    assert far["sweep"]["max_box_acc"] == [0.5] * 50 + [0] * 50
    assert far["sweep"]["0.3"] == [0.5] * 50 + [0] * 50
    assert far["sweep"]["0.7"] == [0] * 100


@lru_cache
def is_reported(image_id: str) -> bool:
    """Return whether an image belongs to the half that thresholds are not chosen on."""
    tally = tallied(table(row(image_id, [(1, WHOLE)])), truth((image_id, 1, WHOLE)), config(select=0.5))
    return bool(tally.sums["swept_instances"][1])


def halves(count: int) -> tuple[list[str], list[str]]:
    """Return the images among "0", "1" ... that thresholds are chosen on, and those that are reported."""
    ids = [str(n) for n in range(count)]
    return [i for i in ids if not is_reported(i)], [i for i in ids if is_reported(i)]


def test_a_threshold_chosen_on_some_images_is_reported_on_the_others() -> None:
    chosen, reported = halves(10)
    assert len(chosen) >= 2
    assert len(reported) >= 3
    # Those to choose on want a high threshold, all but one of the others a low one.
    corners = {**dict.fromkeys(chosen, CELL), **dict.fromkeys(reported, HALF), reported[0]: CELL}
    rows = table(*(row(i, [(1, WHOLE)], known(1, WHOLE, cam=STEP)) for i in corners), shape=(1, 4, 4))
    true = truth(*((i, 1, box) for i, box in corners.items()))
    result = figures(rows, true, config(BY_CELLS, sweep="cam", select=0.5))
    assert result["max_box_acc"] == result["max_box_acc_v2"] == 1 / len(reported)
    assert result["max_box_acc_threshold"] == 0.25
    assert set(result["optimal_threshold"].values()) == {0.25}
    share = (len(reported) - 1) / len(reported)
    assert result["max_box_acc_fixed_threshold"] == result["sweep"]["max_box_acc"][20] == share
    name = "gt_known_localization_accuracy"
    assert result[name] == figures(rows, true, config(BY_CELLS))[name]


def test_a_share_without_images_supports_no_sweep() -> None:
    chosen, reported = halves(6)
    for ids in (chosen, reported):
        rows = table(*(row(i, [(1, WHOLE)], known(1, WHOLE)) for i in ids))
        result = figures(rows, truth(*((i, 1, WHOLE) for i in ids)), config(select=0.5))
        assert all(result[name] is None for name in SWEPT)
        assert result["gt_known_localization_accuracy"] == 1


def test_pointing_and_corloc_are_means_over_classes() -> None:
    hit = known(1, WHOLE, cam=[[1, 0], [0, 0]])
    corner, elsewhere = (0, 0, 5, 5), (80, 80, 100, 100)
    rows = table(
        *(row(str(n), [(1, WHOLE)], hit) for n in range(3)),
        row("3", [(2, WHOLE)], known(2, WHOLE, cam=[[1, 0], [0, 0]])),
    )
    true = truth(("0", 1, corner), ("1", 1, corner), ("2", 1, elsewhere), ("3", 2, corner))
    result = figures(rows, true)
    assert result["pointing_game_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["corloc"] == 0
    true = truth(("0", 1, WHOLE), ("1", 1, FAR), ("2", 1, FAR), ("3", 2, WHOLE))
    assert figures(rows, true)["corloc"] == pytest.approx((1 / 3 + 1) / 2)


def mask_truth(folder: Path, masks: dict[str, np.ndarray], ignores: dict[str, np.ndarray]) -> Truth:
    """Return truth of label 1 with these masks, image by image."""

    def save(kind: str, name: str, pixels: np.ndarray | None) -> str | None:
        if pixels is None:
            return None
        path = folder / f"{name}.{kind}.png"
        path.write_bytes(encode(pixels.astype(np.uint8) * 255, "PNG"))
        return str(path)

    files = [save("mask", i, pixels) for i, pixels in masks.items()]
    left_out = [save("ignore", i, ignores.get(i)) for i in masks]
    return Truth.from_rows(
        list(masks),
        [1] * len(masks),
        masks=pa.array(files, pa.string()),
        ignores=pa.array(left_out, pa.string()),
    )


def test_pxap_is_the_average_precision_of_all_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cams = {i: rng.normal(size=(7, 7)).astype(np.float16) for i in "abc"}
    masks = {i: rng.random((224, 224)) < share for i, share in zip("abc", (0.1, 0.5, 0.02), strict=True)}
    ignores = {"b": rng.random((224, 224)) < 0.3}
    rows = table(*(row(i, [(1, WHOLE)], known(1, WHOLE, cam=cams[i])) for i in "abc"), shape=(1, 7, 7))
    true = mask_truth(tmp_path, masks, ignores)
    result = figures(rows, true, config(criteria(32, (1, 7, 7))))
    counts = {i: masks[i] | ~ignores.get(i, np.zeros((224, 224), bool)) for i in "abc"}
    scores = np.concatenate([score_map(cams[i])[counts[i]] for i in "abc"]).astype(float)
    objects = np.concatenate([masks[i][counts[i]] for i in "abc"])
    # scikit-learn takes every distinct score for a threshold: here the hundredth that it reaches.
    reached = np.minimum(np.floor(scores * 100 + 1e-9), 99)
    assert result["pxap"] == pytest.approx(average_precision_score(objects, reached), abs=1e-9)
    # From the definition, on raw pixels.
    area, before = 0.0, 0.0
    for tau in np.arange(99, -1, -1) / 100:
        above = scores >= tau
        recall = (above & objects).sum() / objects.sum()
        area += (above & objects).sum() / above.sum() * (recall - before)
        before = recall
    assert result["pxap"] == pytest.approx(area, abs=1e-9)
    low, high = result["pxap_ci95"]
    assert low < result["pxap"] < high
    # Each image's pixels weigh as the image does.
    weights = poisson_weights(hash_ids(pa.array(list("abc")))).T
    drawn = [
        average_precision_score(
            objects, reached, sample_weight=np.repeat(w, [counts[i].sum() for i in "abc"])
        )
        for w in weights[:3]
        if w.any()
    ]
    tally = tallied(rows, true, config(criteria(32, (1, 7, 7))))
    few = Tally(
        sums=tally.sums, replicates={k: v[:3][weights[:3].any(1)] for k, v in tally.replicates.items()}
    )
    interval = summary_of(few, true).estimates["pxap"].interval
    assert interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=1e-9)


def test_pxap_by_hand(tmp_path: Path) -> None:
    """Scores 1 in the left quarter, 0.5 in the second, else 0; the object: the left half of the left quarter
    and the last quarter. 28 of 56 columns are right, then 28 of 112, then 84 of 224."""
    map_HW = np.zeros((224, 224))
    map_HW[:, :56], map_HW[:, 56:112] = 1, 0.5
    mask_HW = np.zeros((224, 224))
    mask_HW[:, :28] = mask_HW[:, 168:] = 1
    rows = table(row("a", [(1, WHOLE)], known(1, WHOLE, cam=map_HW)), shape=(1, 224, 224))
    result = figures(rows, mask_truth(tmp_path, {"a": mask_HW}, {}), config(criteria(224, (1, 224, 224))))
    assert result["pxap"] == pytest.approx(28 / 56 * (28 / 84) + 0 + 84 / 224 * (56 / 84))
    assert all(result[name] is None for name in (*SWEPT, "corloc", "gt_known_localization_accuracy"))
    assert result["pointing_game_accuracy"] == 1


def test_pxap_needs_an_object_a_map_and_a_mask(tmp_path: Path) -> None:
    empty, full = np.zeros((8, 8)), np.ones((8, 8))
    right = row("a", [(1, WHOLE)], known(1, WHOLE))
    with pytest.raises(UsageError, match="no pixel of an object"):
        figures(table(right), mask_truth(tmp_path, {"a": empty}, {}))
    lacking = figures(table(right, row("b", [(1, WHOLE)])), mask_truth(tmp_path, {"a": full, "b": full}, {}))
    assert lacking["pxap"] is lacking["pxap_ci95"] is None
    assert lacking["instances_without_target"] == 1
    absent = figures(table(row("b", [(1, WHOLE)])), mask_truth(tmp_path, {"a": empty}, {}))
    assert absent["pxap"] is None
    assert figures(table(right), A)["pxap"] is None
    # A constant map, as a failed row's: every pixel at once.
    failed = figures(table(right, broken("b")), mask_truth(tmp_path, {"a": full, "b": np.eye(8)}, {}))
    assert failed["pxap"] == pytest.approx((1 + 1 / 8) / 2)
