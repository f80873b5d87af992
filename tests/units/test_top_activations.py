"""Class-specific units: selection, top activations and their merging, patches, the table and the page."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from camworker.images.decode import PreprocessedImage
from camworker.inference.localizer import Localizer
from camworker.inputs import ReadPolicy
from camworker.networks.gap import GapNetwork
from camworker.reports.units_page import classes_on_page, cut_patch, write_units_page
from camworker.units.collect import collect_top_activations, peaks
from camworker.units.receptive_field import effective_side
from camworker.units.table import UNITS, units_table
from camworker.units.top_activations import (
    PEAK,
    CollectedActivations,
    TopActivations,
    patch_boxes,
    units_of_classes,
)
from support.factories import photographs_of

HOSTILE = '<script>alert("x")</script>'


def numbered(folder: Path) -> pa.Table:
    items = photographs_of(folder)
    return items.append_column("number", pa.array(np.arange(items.num_rows)))


def peak(value: float, number: int = 0, mean: float = 0.0, y: int = 0, x: int = 0) -> tuple:
    return (value, mean, number, y, x, 100, 50)


def test_units_are_ordered_by_weight_then_by_index() -> None:
    weights_KC = np.array([[0.5, 2.0, -1.0, 2.0], [0.0, 0.0, 0.0, -1.0]], np.float32)
    assert units_of_classes(weights_KC, [0, 1], 3).tolist() == [[1, 3, 0], [0, 1, 2]]
    assert units_of_classes(weights_KC, [1], 9).tolist() == [[0, 1, 2, 3]]


# The values are few, which makes many peaks equal, as a ReLU6 does.
batches_of_peaks = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 5.5, 6.0, float("nan"), -1.0]), st.sampled_from([0.5, 1.0])),
    min_size=2,
    max_size=40,
).flatmap(lambda values: st.tuples(st.just(values), st.permutations(range(len(values) // 2))))


@given(batches_of_peaks, st.integers(1, 5), st.data())
def test_merged_results_equal_a_single_one(drawn: tuple, count: int, data: st.DataObject) -> None:
    values, order = drawn
    images = len(values) // 2
    peaks_BU = np.array(
        [[peak(*values[2 * b + u][:1], b, values[2 * b + u][1]) for u in (0, 1)] for b in range(images)], PEAK
    )
    single = TopActivations.empty(2, count).update(peaks_BU)
    parts = [TopActivations.empty(2, count) for _ in range(3)]
    for b in order:
        at = data.draw(st.integers(0, 2))
        parts[at] = parts[at].update(peaks_BU[b : b + 1])
    one, two, three = parts
    for merged in (one.merge(two).merge(three), three.merge(one.merge(two)), two.merge(three).merge(one)):
        assert (merged.best_UN == single.best_UN).all()
    for u in (0, 1):
        real = sorted((-p["value"], -p["mean"], p["number"]) for p in peaks_BU[:, u] if p["value"] > 0)
        kept = [(-p["value"], -p["mean"], p["number"]) for p in single.best_UN[u][single.is_used_UN[u]]]
        assert kept == real[:count]


def test_counts_are_added_when_results_merge() -> None:
    one = CollectedActivations(TopActivations.empty(1, 2), Counter(ok=3), np.array([1, 2]))
    two = CollectedActivations(TopActivations.empty(1, 2), Counter(ok=1, poison=1), np.array([0, 1]))
    both = one.merge(two)
    assert both.images == {"ok": 4, "poison": 1}
    assert both.top1_counts_K.tolist() == [1, 3]


def test_the_peak_is_the_middle_of_a_plateau_or_the_first_in_row_order() -> None:
    maps_BUHW = torch.zeros(1, 3, 5, 4)
    maps_BUHW[0, 0, 1:4, 1:4] = 6.0  # a plateau
    maps_BUHW[0, 1, 2, 3] = 1.0
    maps_BUHW[0, 2, 0, 3] = maps_BUHW[0, 2, 4, 0] = 2.0  # two equal maxima
    result = peaks(maps_BUHW)[0]
    assert list(zip(result["y"].tolist(), result["x"].tolist(), strict=True)) == [(2, 2), (2, 3), (0, 3)]
    assert result["value"].tolist() == [6, 1, 2]
    assert result["mean"] == pytest.approx([54 / 20, 1 / 20, 4 / 20])


def test_patches_lie_inside_the_image_and_follow_the_frame() -> None:
    peaks_UN = np.array([[peak(1.0, y=0, x=0), peak(1.0, y=3, x=3), peak(1.0, y=2, x=1), peak(0.0)]], PEAK)
    squash = patch_boxes(peaks_UN, (4, 4), 16, 40, "squash")
    # The image is 100 x 50, so that 40 input pixels are 100 wide and 50 high.
    assert squash[0].tolist() == [[0, 0, 40, 20], [60, 30, 100, 50], [17.5, 21.25, 57.5, 41.25], [0] * 4]
    crop = patch_boxes(peaks_UN, (4, 4), 16, 40, "crop")
    assert crop[0].tolist() == [[25, 0, 45, 20], [55, 30, 75, 50], [33.75, 21.25, 53.75, 41.25], [0] * 4]


@pytest.mark.parametrize("stride", [8, 16])
def test_the_side_for_a_box_filter(stride: int) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(stride))
    network = GapNetwork(
        body, features=body, logits=lambda f: f.mean((2, 3)), classifier=None, classes=4, pooling="avg"
    )
    side = effective_side(network, torch.randn(2, 3, 7 * stride, 7 * stride))
    assert abs(side - stride * 0.5**0.5) <= 1


def test_collected_activations_are_the_maxima_of_the_maps(folder: Path, tiny_localizer: Localizer) -> None:
    (folder / "03.png").write_bytes(b"no picture")
    statuses: list[str] = []
    units_U = np.array([2, 9, 11], np.int32)
    collected = collect_top_activations(
        numbered(folder), tiny_localizer, units_U, 4, ReadPolicy(), decoders=2, on_batch=statuses.extend
    )
    assert collected.images == Counter(statuses) == {"ok": 10, "unsupported": 1}
    assert collected.top1_counts_K.sum() == 10
    names = sorted(path.name for path in folder.iterdir())
    maxima = {}
    for number, name in enumerate(names):
        image = tiny_localizer.preprocess((folder / name).read_bytes())
        if isinstance(image, PreprocessedImage):
            maps_CHW = tiny_localizer.features([image])[0][0].numpy()
            maxima[number] = (maps_CHW, 20 + number)
    for u, unit in enumerate(units_U):
        best = sorted(maxima, key=lambda n: (-maxima[n][0][unit].max(), -maxima[n][0][unit].mean()))
        found = collected.activations.best_UN[u][collected.activations.is_used_UN[u]]
        assert len(found)
        assert found["number"].tolist() == best[: len(found)]
        for entry in found:
            maps_CHW, width = maxima[int(entry["number"])]
            assert maps_CHW[unit, entry["y"], entry["x"]] == pytest.approx(entry["value"], rel=1e-5)
            assert entry["value"] == pytest.approx(maps_CHW[unit].max(), rel=1e-5)
            assert (entry["width"], entry["height"]) == (width, 40)


def a_table() -> pa.Table:
    best_UN = np.array(
        [[peak(3.0, 7), peak(2.0, 5)], [peak(0.0), peak(0.0)], [peak(6.0, 5), peak(0.0)]], PEAK
    )
    items = pa.table(
        {
            "image_id": ["b", HOSTILE],
            "uri": ["/in/b", "/in/t.parquet"],
            "source_row": pa.array([None, 4], pa.int64()),
            "number": [7, 5],
        }
    )
    weights_KC = np.array([[0.5, 0.25, 0.0], [0.0, 0.5, 1.0]], np.float32)
    boxes_UN4 = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    units_KU = np.array([[2, 1], [0, 1]], np.int32)
    return units_table(
        [1, 0], ("cat", HOSTILE), units_KU, weights_KC, TopActivations(best_UN), boxes_UN4, items
    )


def test_the_table_has_a_row_per_patch_in_the_order_of_the_classes() -> None:
    table = a_table()
    assert table.schema == UNITS
    rows = table.to_pylist()
    assert [(row["label"], row["unit_rank"], row["unit"], row["patch_rank"]) for row in rows] == [
        (1, 1, 2, 1),
        (0, 1, 0, 1),
        (0, 1, 0, 2),
    ]
    assert [row["weight"] for row in rows] == [1.0, 0.5, 0.5]
    assert [(row["image_id"], row["source_row"]) for row in rows] == [(HOSTILE, 4), ("b", None), (HOSTILE, 4)]
    assert [row["xmin"] for row in rows] == [16, 0, 4]


def test_the_page_escapes_names_and_reports_omissions(tmp_path: Path) -> None:
    rows = a_table().to_pylist()
    source = cut_patch(np.full((50, 100, 3), 90, np.uint8), (16.0, 17.0, 18.0, 19.0))
    pictures = {(HOSTILE, (16.0, 17.0, 18.0, 19.0)): source}
    page = write_units_page(
        tmp_path,
        classes_on_page(rows, [(1, HOSTILE, 2), (0, "cat", 1)], pictures),
        network="tiny",
        images=2,
        failed={"poison": 1},
        total=3,
        by_count=True,
        side=9,
        input_size=32,
    ).read_text()
    assert "<script" not in page
    assert page.count('src="data:image/jpeg;base64,') == 1
    assert page.count("no longer readable") == 2
    assert "2 of 3" in page
    assert "1 poison" in page


def test_a_patch_at_the_edge_has_at_least_one_pixel() -> None:
    photo_HW3 = np.zeros((5, 4, 3), np.uint8)
    assert cut_patch(photo_HW3, (4.0, 5.0, 4.0, 5.0)).startswith("data:image/jpeg")
