"""Tests of tallies: any split and order gives the same sums, and metrics equal those of plain loops."""

from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from camworker.boxes.iou import iou
from camworker.boxes.maxboxacc import (
    contour_boxes,
    largest_contour_box,
    scaled_truth,
    score_map,
)
from camworker.metrics import tally as metrics
from camworker.metrics.confidence import REPLICATES, poisson_weights
from camworker.metrics.definitions import METRICS
from camworker.metrics.ground_truth.truth import Truth, hash_ids
from camworker.metrics.matching import COLUMNS
from camworker.metrics.tally import EXAMPLES, EvaluationConfig, Tally
from camworker.metrics.threshold_sweep import THRESHOLDS
from support.factories import encode
from support.prediction_rows import (
    CLASSES,
    FAR,
    LEFT,
    WHOLE,
    broken,
    config,
    criteria,
    figures,
    known,
    row,
    summary_of,
    table,
    truth,
)

# Smaller examples are searched for by running hundreds: too slow where each takes a quarter second.
NO_SHRINKING = (Phase.explicit, Phase.generate)

MAPS = [
    ((0, 0), (0, 0)),
    ((1, 0), (0, 0)),
    ((0.25, 1), (0.5, -1)),
    ((-3, -2), (-1, -2)),
]
BOXES = st.sampled_from([WHOLE, LEFT, FAR, (0, 0, 60, 60), (3, 5, 40, 90), (0, 0, 49, 100)])
LABELS = st.integers(0, 3)
TARGETS = st.lists(st.tuples(LABELS, BOXES, st.sampled_from(MAPS)), max_size=3, unique_by=lambda t: t[0])
OK = st.tuples(
    st.lists(LABELS, min_size=2, max_size=2, unique=True),
    st.lists(st.lists(BOXES, min_size=1, max_size=4), min_size=2, max_size=2),
    TARGETS,
    st.sampled_from([(100, 100), (60, 130)]),
    st.sampled_from([0.1, 0.5, 0.99, 1.0]),
    st.sampled_from(MAPS),
)
ROWS = st.lists(st.one_of(OK, OK, OK, st.sampled_from(["decode_error", "poison"])), min_size=1, max_size=8)
TRUTH = st.lists(st.tuples(st.integers(0, 9), LABELS, st.one_of(BOXES, st.none())), min_size=1, max_size=16)


def made(drawn: list[Any]) -> list[Any]:
    """Return rows of the images 0, 1, 2 ... as drawn from ROWS."""
    rows = []
    for n, what in enumerate(drawn):
        if isinstance(what, str):
            rows.append(broken(str(n), what))
            continue
        labels, boxes, targets, size, score, cam = what
        pairs = [(label, corners) for label, some in zip(labels, boxes, strict=True) for corners in some]
        own = [known(label, corners, cam=cam) for label, corners, cam in targets]
        rows.append(row(str(n), pairs, *own, size=size, score=score, cams=[cam, np.negative(cam)]))
    return rows


def truth_of(drawn: list[Any], **facts: Any) -> Truth:
    return truth(*((str(image), label, corners) for image, label, corners in drawn), **facts)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """Return files of masks that are not empty, and None."""
    folder = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    paths: list[str | None] = [None]
    for n in range(3):
        path = folder / f"{n}.png"
        path.write_bytes(encode((rng.random((5, 7)) < 0.4).astype(np.uint8) * 255, "PNG"))
        paths.append(str(path))
    return paths


CONFIGS = st.sampled_from(
    [
        config(),
        config(select=0.5),
        config(sweep="cam"),
        config(sweep=None),
        config(criteria(inclusive=True)),
        config(criteria(shape=(2, 2, 2), box_rule="cam20-multi"), sweep="cam", select=0.3),
    ]
)


@given(ROWS, TRUTH, CONFIGS, st.booleans(), st.data())
@settings(max_examples=12, phases=NO_SHRINKING)
def test_any_split_and_any_order_gives_what_one_pass_gives(
    masks: list[str | None],
    drawn: list[Any],
    true: list[Any],
    what: EvaluationConfig,
    inclusive: bool,
    data: st.DataObject,
) -> None:
    facts: dict[str, Any] = {"inclusive": inclusive}
    if data.draw(st.booleans()):
        for name in ("masks", "ignores"):
            files = st.lists(st.sampled_from(masks), min_size=len(true), max_size=len(true))
            facts[name] = pa.array(data.draw(files), pa.string())
    known_truth = truth_of(true, **facts)
    rows = table(*made(drawn), shape=(2, 2, 2))
    whole = Tally().update(rows, known_truth, what)

    shuffled = rows.take(data.draw(st.permutations(range(len(drawn)))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(drawn)), max_size=2)))  # parts without a row too
    parts = [
        shuffled.slice(start, end - start) for start, end in zip([0, *cuts], [*cuts, len(drawn)], strict=True)
    ]
    tallies = [Tally().update(part, known_truth, what) for part in parts]
    merged = Tally()  # update() is nothing but this
    for n in data.draw(st.permutations(range(len(tallies)))):
        merged.merge(tallies[n])
    assert_equal(merged, whole)
    ours, theirs = (summary_of(t, known_truth, what) for t in (merged, whole))
    assert ours == theirs


def assert_equal(ours: Tally, theirs: Tally) -> None:
    """Compare everything that two tallies hold, to the last bit."""
    for name in ("sums", "replicates"):
        mine, others = getattr(ours, name), getattr(theirs, name)
        assert mine.keys() == others.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], others[key], err_msg=key)
    for name in ("images", "failed", "without_truth", "best", "worst"):
        assert getattr(ours, name) == getattr(theirs, name)
    np.testing.assert_array_equal(ours.seen, theirs.seen)


@given(ROWS, TRUTH, st.data())
@settings(max_examples=8, phases=NO_SHRINKING)
def test_the_order_of_the_truth_does_not_matter(
    drawn: list[Any], true: list[Any], data: st.DataObject
) -> None:
    rows = table(*made(drawn), shape=(2, 2, 2))
    shuffled = data.draw(st.permutations(true))
    assert_equal(*(Tally().update(rows, truth_of(order), config()) for order in (true, shuffled)))


def overlap(a: Any, b: Any) -> float:
    """Return the IoU of two half-open boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


@lru_cache
def swept(cam: Any, size: tuple[int, int], corners: Any) -> np.ndarray:
    """Return the best IoU of V1 and V2 at every threshold, [100, 2], from the plain implementation."""
    score_HW, true = score_map(np.array(cam, np.float16)), scaled_truth(np.array(corners), *size)
    return np.array(
        [
            [
                iou(found, true, inclusive=True).max()
                for found in (largest_contour_box(score_HW, tau), contour_boxes(score_HW, tau))
            ]
            for tau in THRESHOLDS
        ]
    )


def points(cam: Any, size: tuple[int, int], corners: Any) -> bool:
    """Return whether the maximum is within 15 pixels of a box, with a loop over the pixels of the map."""
    map_HW = cv2.resize(np.array(cam, np.float32), (32, 32)).tolist()
    _, y, x = max((value, -y, -x) for y, line in enumerate(map_HW) for x, value in enumerate(line))
    at = ((0.5 - x) * size[0] / 32, (0.5 - y) * size[1] / 32)
    return any(
        sum(max(box[n] - at[n], at[n] - box[n + 2], 0) ** 2 for n in (0, 1)) <= 15**2 for box in corners
    )


def mean(values: list[Any]) -> float | None:
    return sum(map(float, values)) / len(values) if values else None


GT_KNOWN_NAMES = {
    0.3: "gt_known_at_0.3",
    0.5: "gt_known_localization_accuracy",
    0.7: "gt_known_at_0.7",
}


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a summary with every metric under its own name."""
    at = result["gt_known_at"] or {}
    return {**result, **{name: at.get(str(delta)) for delta, name in GT_KNOWN_NAMES.items()}}


def by_loops(rows: list[dict[str, Any]], true: list[Any]) -> dict[str, float | None]:
    """Return the metrics, computed one instance after another."""
    instances: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for image, label, corners in true:
        instances[str(image), label] += [] if corners is None else [corners]
    by_id = {r["image_id"]: r for r in rows}
    found: dict[str, list[Any]] = defaultdict(list)
    of_class: dict[str, dict[int, list[bool]]] = {"corloc": defaultdict(list), "pointing": defaultdict(list)}
    lacking = 0
    for (image, label), corners in instances.items():
        if image not in by_id:
            continue
        r = by_id[image]
        pairs = [(b["label"], [b[c] for c in ("xmin", "ymin", "xmax", "ymax")]) for b in r["boxes"]]
        size = (r["width"], r["height"])
        for k in (1, 5):
            found[f"top{k}_classification_error"].append(label not in r["labels"][:k])
        if not corners:
            continue
        hits = [own == label and max(overlap(box, c) for c in corners) >= 0.5 for own, box in pairs]
        for k in (1, 5):
            found[f"top{k}_localization_error"].append(not any(hits[:k]))
        target = next((t for t in r["targets"] if t["label"] == label), None)
        lacking += target is None and r["status"] == "ok"
        boxes = [[b[c] for c in ("xmin", "ymin", "xmax", "ymax")] for b in target["boxes"]] if target else []
        best = max(overlap(boxes[0], c) for c in corners) if boxes else 0
        for delta, name in GT_KNOWN_NAMES.items():
            found[name].append(best >= delta)
        first = boxes or [box for own, box in pairs if own == label]
        right = bool(first) and max(overlap(first[0], c) for c in corners) >= 0.5
        of_class["corloc"][label].append(right)
        values = np.frombuffer(target["cam"], "<f2").tolist() if target else []
        cam = target and (tuple(values[:2]), tuple(values[2:]))
        of_class["pointing"][label].append(bool(cam) and points(cam, size, corners))
        found["sweep"].append(swept(cam, size, tuple(corners)) if cam else np.zeros((100, 2)))
    sweep = np.array(found.pop("sweep", np.zeros((0, 100, 2))))
    names = [metric.name for metric in METRICS]
    result = {name: mean(found[name]) for name in names if name in found or "error" in name}
    result["corloc"] = mean([mean(some) for some in of_class["corloc"].values()])
    for name in (*GT_KNOWN_NAMES.values(), "pointing_game_accuracy", "max_box_acc", "max_box_acc_v2"):
        result.setdefault(name, None)
    if lacking:
        result |= dict.fromkeys(GT_KNOWN_NAMES.values())
    elif len(sweep):
        result["pointing_game_accuracy"] = mean([mean(some) for some in of_class["pointing"].values()])
        result["max_box_acc"] = (sweep[:, :, 0] >= 0.5).mean(0).max()
        result["max_box_acc_v2"] = np.mean([(sweep[:, :, 1] >= d).mean(0).max() for d in (0.3, 0.5, 0.7)])
    return {**result, "lacking": lacking}


@given(ROWS, TRUTH)
@settings(max_examples=25, phases=NO_SHRINKING)
def test_metrics_equal_those_of_plain_loops(drawn: list[Any], true: list[Any]) -> None:
    rows = table(*made(drawn), shape=(2, 2, 2))
    result = flat(figures(rows, truth_of(true)))
    expected = by_loops(rows.to_pylist(), true)
    assert result["instances_without_target"] == expected.pop("lacking")
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_the_plain_loops_cover_every_outcome() -> None:
    """On a fixed sample the metrics of the plain loops are neither null nor trivial."""
    rng = np.random.default_rng(3)
    boxes = [WHOLE, LEFT, FAR, (0, 0, 60, 60)]
    drawn, true = [], []
    for n in range(24):
        label, other = rng.permutation(4)[:2].tolist()
        ranked = [[boxes[rng.integers(4)]], [boxes[rng.integers(4)]]]
        targets = [(k, boxes[rng.integers(4)], MAPS[rng.integers(4)]) for k in (label, other)]
        drawn.append(([label, other], ranked, targets, (100, 100), 0.5, MAPS[0]))
        true += [(n, k, boxes[rng.integers(4)]) for k in (label, other, label)]
    rows = table(*made(drawn), shape=(2, 2, 2))
    expected = by_loops(rows.to_pylist(), true)
    assert expected.pop("lacking") == 0
    assert all(0.05 < value < 0.95 for name, value in expected.items() if name != "top5_classification_error")
    result = flat(figures(rows, truth_of(true)))
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_a_part_in_which_no_image_has_truth_adds_its_images() -> None:
    true = truth(("a", 1, WHOLE))
    tally = Tally().update(table(row("a", [(1, WHOLE)], known(1, WHOLE))), true, config())
    before = {name: value.copy() for name, value in tally.sums.items()}
    for rows in (table(), table(row("stray", [(1, WHOLE)])), table(broken("worse"))):
        tally.update(rows, true, config())
    assert tally.images == 3
    assert tally.failed == {"decode_error": 1}
    assert {image_id for _, image_id in tally.without_truth} == {"stray", "worse"}
    for name, value in before.items():
        np.testing.assert_array_equal(tally.sums[name], value, err_msg=name)


def test_replicates_are_the_sums_under_each_weight() -> None:
    rows = table(
        row("a", [(1, WHOLE), (2, LEFT)], known(1, WHOLE), known(2, LEFT)),
        row("b", [(3, FAR)], known(1, FAR)),
    )
    tally = Tally().update(rows, truth(("a", 1, WHOLE), ("a", 2, WHOLE), ("b", 1, WHOLE)), config())
    a, b = poisson_weights(hash_ids(pa.array(["a", "b"]))).astype(float)
    replicates = tally.replicates
    np.testing.assert_array_equal(replicates["instances"], 2 * a + b)
    np.testing.assert_array_equal(replicates["top1_classified"], a)
    np.testing.assert_array_equal(replicates["top5_classified"], 2 * a)
    np.testing.assert_array_equal(replicates["gt_known_localized_0.5"], 2 * a)
    np.testing.assert_array_equal(replicates["class_instances_with_boxes"][:, :4].T, [0 * a, a + b, a, 0 * a])
    np.testing.assert_array_equal(replicates["class_localized_anywhere"][:, :4].T, [0 * a, a, a, 0 * a])
    assert replicates["max_box_acc_hits"].shape == (REPLICATES, 2, 100)
    assert replicates["class_localized_anywhere"].shape == (REPLICATES, CLASSES)


def test_a_share_of_the_images_is_drawn_by_hash_to_choose_on() -> None:
    ids = [f"image {n}" for n in range(400)]
    rows = table(*(row(i, [(1, WHOLE)]) for i in ids))
    true = truth(*((i, label, WHOLE) for i in ids for label in (1, 2)))
    assert Tally().update(rows, true, config()).sums["swept_instances"].tolist() == [800, 800]
    for select in (0.2, 0.5):
        tally = Tally().update(rows, true, config(select=select))
        chosen, reported = tally.sums["swept_instances"].tolist()
        assert chosen + reported == 800
        assert not (tally.replicates["swept_instances"] % 2).any()  # labels of one image stay together
        assert abs(chosen / 800 - select) < 5 * (select * (1 - select) / 400) ** 0.5
        # A replicate's weights know nothing of it.
        mean = tally.replicates["swept_instances"].mean(0)
        assert abs(mean - [chosen, reported]).max() < 5 * (4 * 400 / REPLICATES) ** 0.5


def test_the_best_and_the_worst_images_are_kept_in_order() -> None:
    count = 2 * EXAMPLES + 5
    heights = np.random.default_rng(0).permutation(count) + 1
    rows = [row(str(n), [(1, WHOLE)], known(1, (0, 0, 100, int(h)))) for n, h in enumerate(heights)]
    without_a_map = row("other", [(1, WHOLE)])
    true = truth(*((str(n), 1, WHOLE) for n in range(count)), ("other", 1, WHOLE), ("failed", 1, WHOLE))
    tally = Tally()
    for n in range(0, count, 10):
        tally.update(table(*rows[n : n + 10], broken(f"failed{n}")), true, config())
    tally.update(table(without_a_map, broken("failed")), true, config())
    by_iou = [str(n) for n in np.argsort(heights)]
    assert [example[2] for example in tally.worst] == by_iou[:EXAMPLES]
    assert [example[2] for example in tally.best] == by_iou[: -EXAMPLES - 1 : -1]
    assert [example[0] for example in tally.worst[:3]] == pytest.approx([0.01, 0.02, 0.03])
    assert {example[3] for example in tally.best} == {1}


def test_few_images_are_among_the_best_and_the_worst() -> None:
    rows = table(row("a", [(1, WHOLE)], known(1, WHOLE)), row("b", [(1, WHOLE)], known(1, LEFT)))
    tally = Tally().update(rows, truth(("a", 1, WHOLE), ("b", 1, WHOLE)), config())
    assert [example[2] for example in tally.best] == ["a", "b"]
    assert [example[2] for example in tally.worst] == ["b", "a"]


def test_images_without_truth_are_listed_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LISTED", 4)
    ids = [f"stray {n}" for n in range(9)]
    hashes = dict(zip(hash_ids(pa.array(ids)).tolist(), ids, strict=True))
    expected = sorted(hashes.items())[:4]
    for order in (ids, ids[::-1]):
        tally = Tally()
        for n in range(0, 9, 2):
            tally.update(
                table(*(row(i, [(1, WHOLE)]) for i in order[n : n + 2])), truth(("a", 1, WHOLE)), config()
            )
        assert tally.without_truth == expected


def test_the_columns_that_are_read() -> None:
    assert config().columns == COLUMNS
    assert config(criteria(box_rule="cam20")).columns == (*COLUMNS, "cams")
    rows = table(row("a", [(1, WHOLE)], known(1, WHOLE)))
    assert Tally().update(rows.select(config().columns), truth(("a", 1, WHOLE)), config()).images == 1


def test_tables_of_several_chunks(tmp_path: Path) -> None:
    rows = [row(str(n), [(1, WHOLE)], known(1, WHOLE)) for n in range(4)]
    true = truth(*((str(n), 1, WHOLE) for n in range(4)))
    chunked = pa.concat_tables([table(*rows[:1]), table(*rows[1:3]), table(*rows[3:])])
    assert_equal(Tally().update(chunked, true, config()), Tally().update(table(*rows), true, config()))
