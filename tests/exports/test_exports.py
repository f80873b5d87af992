"""COCO, Pascal VOC and Label Studio exports, read by other libraries; exports are complete or absent."""

import io
import json
import re
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout

import globox
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.exports.export import export
from camworker.exports.file_names import check_xml_names, distinct_names
from camworker.exports.provenance import FORMATS
from camworker.exports.selection import LabelSelection
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.storage.memory import MemoryStore
from support.export_rows import (
    NAMES,
    NASTY,
    RECIPE,
    ROWS,
    commit,
    every_class,
    exported,
    known,
    ledger_of,
    recipe,
    seen,
    stored,
)


def read_coco(path):
    with redirect_stdout(io.StringIO()):
        return COCO(str(path))


def xyxy(bbox):
    """Corners in float32, as a reader computes them."""
    x, y, width, height = bbox
    return np.array([x, y, x + width, y + height]).astype(np.float32).tolist()


def test_coco(tmp_path):
    ledger = ledger_of(ROWS | every_class())
    read = read_coco(exported(ledger, "coco", tmp_path / "boxes.json", ranks=2))
    assert read.dataset["info"]["recipe"] == RECIPE
    assert {c["id"]: c["name"] for c in read.dataset["categories"]} == {
        index + 1: name for index, name in enumerate(distinct_names(Classes(NAMES)))
    }
    assert [a["id"] for a in read.dataset["annotations"]] == list(range(1, len(read.anns) + 1))
    images = stored(ledger, ranks=2)
    assert {image["file_name"] for image in read.imgs.values()} == set(images)
    for number, image in read.imgs.items():
        expected = images[image["file_name"]]
        assert (number, image["width"], image["height"]) == (expected.number, 200, 100)
        annotations = read.loadAnns(read.getAnnIds(imgIds=[number]))
        assert [xyxy(a["bbox"]) for a in annotations] == expected.boxes
        assert [a["category_id"] - 1 for a in annotations] == expected.labels
        assert [a["score"] for a in annotations] == expected.scores
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] and a["iscrowd"] == 0 for a in annotations)


def test_coco_results_fit_the_data_set_for_any_selection(tmp_path):
    ledger = ledger_of(ROWS | every_class())
    data = read_coco(exported(ledger, "coco", tmp_path / "data.json", classes=frozenset({2, 3, 5}), ranks=2))
    path = exported(ledger, "coco-results", tmp_path / "results.json", classes=frozenset({5, 3, 2}), ranks=2)
    with redirect_stdout(io.StringIO()):
        results = data.loadRes(str(path))
    want = [(a["image_id"], a["category_id"], a["bbox"], a["score"]) for a in data.anns.values()]
    assert len(want) == 5
    assert [(a["image_id"], a["category_id"], a["bbox"], a["score"]) for a in results.anns.values()] == want
    every = json.loads(exported(ledger, "coco-results", tmp_path / "every.json", ranks=2).read_text())
    assert {(r["image_id"], r["category_id"]) for r in every} > {want[:2] for want in want}


@given(st.lists(st.floats(0, 5000, width=32), min_size=4, max_size=4))
def test_corners_come_back_from_x_y_width_height(corners):
    (xmin, xmax), (ymin, ymax) = sorted(corners[:2]), sorted(corners[2:])
    assert xyxy([xmin, ymin, xmax - xmin, ymax - ymin]) == [xmin, ymin, xmax, ymax]


def test_average_precision_by_pycocotools(tmp_path):
    """Three images with a true box each: hit at score 0.9, missed at 0.8, hit with IoU 0.62 at 0.7.

    Precision is 1 up to recall 1/3 and 2/3 up to recall 2/3. 34 of the 101 recall levels are in the
    first third and 33 in the second: AP50 = (34 + 33 * 2/3) / 101. At IoU over 0.6 the third box misses: 34 /
    101.
    """
    truth = (0, 0, 100, 50)
    target = [known(0, 0.1, truth)]
    ledger = ledger_of(
        {
            "hit": seen((0, 0.9, truth), targets=target),
            "miss": seen((0, 0.8, (150, 60, 200, 100)), targets=target),
            "part": seen((0, 0.7, (0, 0, 62, 50)), targets=target),
        }
    )
    with redirect_stdout(io.StringIO()):
        true = COCO(str(exported(ledger, "coco", tmp_path / "truth.json", targets=True)))
        predicted = true.loadRes(str(exported(ledger, "coco-results", tmp_path / "results.json")))
        evaluation = COCOeval(true, predicted, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[1] == pytest.approx(56 / 101)  # AP50
    assert evaluation.stats[2] == pytest.approx(34 / 101)  # AP75
    assert evaluation.stats[0] == pytest.approx((3 * 56 + 7 * 34) / 1010)  # IoU 0.5, 0.55 ... 0.95


def test_voc(tmp_path):
    ledger = ledger_of(ROWS | every_class())
    folder = exported(ledger, "voc", tmp_path / "voc", ranks=2)
    read = globox.AnnotationSet.from_pascal_voc(folder / "Annotations")
    images, names = stored(ledger, ranks=2), distinct_names(Classes(NAMES))
    assert set(read.image_ids) == set(images)
    for image_id, expected in images.items():
        assert read[image_id].image_size == (200, 100)
        # globox takes corners as they stand; the minima are 1-based.
        boxes = [[b.xmin - 1, b.ymin - 1, b.xmax, b.ymax] for b in read[image_id].boxes]
        assert np.array(boxes) == pytest.approx(np.array(expected.boxes), abs=1e-12)
        assert [b.label for b in read[image_id].boxes] == [names[label] for label in expected.labels]


def test_voc_counts_pixels_from_one(tmp_path):
    folder = exported(ledger_of({"a": seen((0, 0.9, (1, 2, 30.5, 40)))}), "voc", tmp_path / "voc")
    (path,) = (folder / "Annotations").iterdir()
    assert "<xmin>2</xmin><ymin>3</ymin><xmax>30.5</xmax><ymax>40</ymax>" in path.read_text()


def test_label_studio(tmp_path):
    ledger = ledger_of(ROWS | every_class())
    folder = exported(ledger, "label-studio", tmp_path / "tasks", ranks=2)
    config = ET.parse(folder / "label_config.xml").getroot()
    names = distinct_names(Classes(NAMES))
    assert [label.get("value") for label in config.iter("Label")] == list(names)
    (image,), (labels,) = config.findall("Image"), config.findall("RectangleLabels")
    images = stored(ledger, ranks=2)
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [task["data"]["image_id"] for task in tasks] == list(images)
    for task in tasks:
        expected = images[task["data"]["image_id"]]
        assert task["data"]["image"] == "/data/local-files/?d=in/a%20b.jpg"
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == RECIPE
        assert prediction["score"] == max(expected.scores)
        for index, region in enumerate(prediction["result"]):
            value = region["value"]
            assert (region["from_name"], region["to_name"]) == (labels.get("name"), image.get("name"))
            assert value["rectanglelabels"] == [names[expected.labels[index]]]
            assert region["score"] == expected.scores[index]
            assert (region["original_width"], region["original_height"]) == (200, 100)
            percent = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
            assert np.array(percent) * [2, 1, 2, 1] == pytest.approx(
                np.array(expected.boxes[index]), abs=1e-9
            )
        assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"])


def test_label_studio_needs_files(tmp_path):
    ledger = Ledger(MemoryStore(), RECIPE)
    ledger.write_recipe(recipe())
    commit(ledger, {"a": ROWS["a"]}, uri="/in/table.parquet", source_row=7)
    with pytest.raises(UsageError, match=r"'a' is a row of /in/table\.parquet"):
        export(Snapshot.load(ledger), "label-studio", tmp_path / "tasks", LabelSelection())
    assert not list(tmp_path.iterdir())


def test_class_names_that_xml_cannot_hold_are_refused(tmp_path):
    check_xml_names(NASTY, "voc")
    names = ("cat", "a\0b", "dog", "bird")
    for form in ("voc", "label-studio"):
        with pytest.raises(UsageError, match=r"'a\\x00b'") as refusal:
            export(Snapshot.load(ledger_of(ROWS, names=names)), form, tmp_path / form, LabelSelection())
        assert refusal.value.parameter == "classes"
        export(
            Snapshot.load(ledger_of(ROWS, names=names)),
            form,
            tmp_path / form,
            LabelSelection(classes=frozenset({0, 2})),
        )


@pytest.mark.parametrize("form", [f for f in FORMATS if f not in ("yolo", "hugging-face", "masks")])
def test_an_interrupted_export_leaves_nothing(tmp_path, form):
    target = tmp_path / "deep/to"
    drafts = []

    def interrupt(counts):
        drafts.extend(path.name for path in target.parent.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(Snapshot.load(ledger_of(ROWS)), form, target, LabelSelection(), interrupt)
    assert len(drafts) == 1
    assert re.fullmatch(r"\.to\.[0-9a-f]{32}\.draft", drafts[0])
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_an_existing_target_is_not_replaced(tmp_path, form):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(UsageError, match="name"):
            export(Snapshot.load(ledger_of(ROWS)), form, tmp_path / name, LabelSelection())
    with pytest.raises(UsageError, match="is a file"):
        export(Snapshot.load(ledger_of(ROWS)), form, tmp_path / "file/below", LabelSelection())
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_target_that_appears_during_the_export_is_not_replaced(tmp_path):
    target = tmp_path / "boxes.json"
    with pytest.raises(UsageError, match="exists already"):
        export(
            Snapshot.load(ledger_of(ROWS)),
            "coco",
            target,
            LabelSelection(),
            lambda counts: target.write_text("theirs") and None,
        )
    assert target.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_an_empty_folder_is_accepted_as_target(tmp_path):
    (tmp_path / "voc").mkdir()
    export(Snapshot.load(ledger_of(ROWS)), "voc", tmp_path / "voc", LabelSelection())
    assert len(list((tmp_path / "voc/Annotations").iterdir())) == 2


def test_a_folder_is_refused_where_a_file_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty/boxes\.json"):
        export(Snapshot.load(ledger_of(ROWS)), "coco", tmp_path / "empty", LabelSelection())


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(UsageError, match=f"no permission to write in {tmp_path}$"):
        export(Snapshot.load(ledger_of(ROWS)), "voc", tmp_path / "new/voc", LabelSelection())
    assert not list(tmp_path.iterdir())


def test_unsupported_selections_are_refused(tmp_path):
    ledger = ledger_of({"c": ROWS["c"]})
    with pytest.raises(UsageError, match="have 2 labels each"):
        export(Snapshot.load(ledger), "coco", tmp_path / "to", LabelSelection(ranks=3))
    with pytest.raises(UsageError, match="box rule"):
        export(Snapshot.load(ledger), "coco", tmp_path / "to", LabelSelection(box_rule="cam:2"))
    with pytest.raises(UsageError, match="no image has known labels"):
        export(Snapshot.load(ledger), "coco", tmp_path / "to", LabelSelection(targets=True))
    assert not list(tmp_path.iterdir())


def test_an_export_without_boxes_is_valid(tmp_path):
    export(Snapshot.load(ledger_of(ROWS)), "coco", tmp_path / "boxes.json", LabelSelection(min_score=1.0))
    read = read_coco(tmp_path / "boxes.json")
    assert (read.imgs, read.anns, len(read.cats)) == ({}, {}, len(NAMES))
    export(
        Snapshot.load(ledger_of(ROWS)),
        "coco-results",
        tmp_path / "results.json",
        LabelSelection(min_score=1.0),
    )
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_repeated_exports_are_equal_byte_for_byte(tmp_path):
    ledger = ledger_of(ROWS | every_class())
    for form in ("coco", "coco-results"):
        first, second = (exported(ledger, form, tmp_path / f"{form}-{n}", ranks=2) for n in range(2))
        assert first.read_bytes() == second.read_bytes()


def fallback_rows():
    """A row whose first box is the one over the whole image, because its map has no positive value."""
    row = seen((0, 0.9, (0, 0, 200, 100)), (1, 0.1, (1, 2, 3, 4)))
    row.boxes["fallback"] = [True, False]
    return {"a": row}


def test_fallback_boxes_are_left_out_and_counted(tmp_path):
    snapshot = Snapshot.load(ledger_of(fallback_rows()))
    counts = export(snapshot, "coco", tmp_path / "boxes.json", LabelSelection(ranks=2))
    assert (counts.boxes, counts.fallback_boxes, counts.empty_images) == (1, 1, 0)
    counts = export(snapshot, "coco", tmp_path / "none.json", LabelSelection())
    assert (counts.boxes, counts.fallback_boxes, counts.empty_images) == (0, 1, 1)
    # The maps of these rows are zero.
    counts = export(snapshot, "coco", tmp_path / "made.json", LabelSelection(ranks=2, box_rule="cam20"))
    assert (counts.boxes, counts.fallback_boxes, counts.empty_images) == (0, 2, 1)


def test_fallback_boxes_are_marked_if_they_are_kept(tmp_path):
    ledger = ledger_of(fallback_rows())
    read = read_coco(exported(ledger, "coco", tmp_path / "a.json", ranks=2, keep_fallback=True))
    assert [a.get("fallback", False) for a in read.anns.values()] == [True, False]
    path = exported(ledger, "coco-results", tmp_path / "b.json", ranks=2, keep_fallback=True)
    assert [r.get("fallback", False) for r in json.loads(path.read_text())] == [True, False]
    folder = exported(ledger, "voc", tmp_path / "voc", ranks=2, keep_fallback=True)
    (path,) = (folder / "Annotations").iterdir()
    assert [e.text for e in ET.parse(path).getroot().iter("difficult")] == ["1", "0"]
    folder = exported(ledger, "label-studio", tmp_path / "tasks", ranks=2, keep_fallback=True)
    (task,) = json.loads((folder / "tasks.json").read_text())
    (prediction,) = task["predictions"]
    assert ["meta" in region for region in prediction["result"]] == [True, False]
    assert "no positive value" in prediction["result"][0]["meta"]["text"][0]
