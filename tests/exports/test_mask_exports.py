"""Masks in exports, read by pycocotools, as Ultralytics reads label files, and as ground truth."""

import csv
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.exports.export import export
from camworker.exports.selection import Counts, LabelSelection
from camworker.exports.weak_labels import labelled_images
from camworker.inference.localizer import Localizer
from camworker.inference.predictions import FailedPrediction
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.metrics.ground_truth.masks import object_pixels
from camworker.metrics.ground_truth.read import read_annotations
from camworker.schemas import ITEMS
from camworker.storage.local import LocalStore
from jobs.cli import main
from support.export_rows import IDS, NAMES, RECIPE, ROWS, exported, known, ledger_of, recipe, seen
from support.factories import run_generation
from support.tapped_network import discs, tapped_package

WIDTH, HEIGHT = 200, 100
BOX = (0, 0, 9, 9)
NOTHING = np.zeros((8, 8), np.uint8)


def columns(*shares: int) -> np.ndarray:
    """A refined map whose eight columns have these values."""
    return np.tile(np.array(shares, np.uint8), (8, 1))


# The mean of the right half is a half, which its edge reaches in the middle.
RIGHT = columns(0, 0, 0, 0, 255, 255, 255, 255)
RIGHT_MASK = np.arange(WIDTH) >= 100
# The mean is 3 / 8, which an edge reaches 1 / 8 of a cell (25 pixels) before the middle.
TWO = columns(255, 0, 0, 0, 0, 255, 255, 0)
# Two components and a hole.
RING = np.zeros((8, 8), np.uint8)
RING[1:7, 0:5], RING[3:5, 2:3], RING[2:6, 7] = 255, 0, 255


def rows() -> dict[str, object]:
    return {
        "right.jpg": seen((0, 0.9, BOX), refined=RIGHT[None], targets=[known(2, 0.1, BOX, refined=TWO)]),
        "broken.jpg": FailedPrediction("decode_error", "because"),
        "in/two.png": seen((1, 0.8, BOX), refined=TWO[None]),
        "ring.png": seen((1, 0.7, BOX), refined=RING[None], targets=[known(0, 0.2, BOX, refined=NOTHING)]),
        "nothing.png": seen((0, 0.6, BOX), refined=NOTHING[None]),
    }


def masks_of(ledger: Ledger, **choice: object) -> tuple[dict[str, list[np.ndarray]], Counts]:
    """The masks that every reader has to find, by image id."""
    counts = Counts()
    selection = LabelSelection(**{"mask_threshold": 1.0, **choice})
    images = labelled_images(Snapshot.load(ledger), selection, counts)
    return {image.image_id: [mask.pixels() for mask in image.masks] for image in images}, counts


def share(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())


def read_coco(path: Path) -> COCO:
    with redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_masks_and_the_boxes_around_them() -> None:
    masks, counts = masks_of(ledger_of(rows()))
    assert list(masks) == ["right.jpg", "in/two.png", "ring.png"]
    assert np.array_equal(masks["right.jpg"][0], np.tile(RIGHT_MASK, (HEIGHT, 1)))
    edges = np.flatnonzero(np.diff(masks["in/two.png"][0][50].astype(int)))
    assert edges.tolist() == [27, 121, 177]  # 3 / 8 lies 1 / 8 of a cell outside of the middle of an edge
    assert cv2.connectedComponents(masks["ring.png"][0].astype(np.uint8))[0] == 3
    assert (counts.images, counts.boxes, counts.labels_without_mask, counts.empty_images) == (3, 3, 1, 1)
    assert counts.failed == {"decode_error": 1}
    selection = LabelSelection(mask_threshold=1.0)
    first, *_ = labelled_images(Snapshot.load(ledger_of(rows())), selection, Counts())
    assert first.boxes == [[100, 0, 200, 100]]


def test_a_lower_threshold_gives_larger_masks() -> None:
    areas = [masks_of(ledger_of(rows()), mask_threshold=t)[0]["right.jpg"][0].sum() for t in (0.5, 1, 1.5)]
    assert areas == sorted(areas, reverse=True)
    assert len(set(areas)) == 3


def test_masks_of_known_labels() -> None:
    masks, counts = masks_of(ledger_of(rows()), targets=True)
    assert list(masks) == ["right.jpg"]
    assert masks["right.jpg"][0][0].sum() == 28 + 56
    assert (counts.known_labels, counts.labels_without_mask, counts.empty_images) == (2, 1, 3)


def test_maps_of_all_labels() -> None:
    both = {"a.jpg": seen((0, 0.9, BOX), (1, 0.1, BOX), refined=np.stack([RIGHT, TWO]))}
    masks, _ = masks_of(ledger_of(both), ranks=2)
    assert [mask.any(axis=0).sum() for mask in masks["a.jpg"]] == [100, 84]


def test_labels_without_a_stored_map_are_counted() -> None:
    mixed = rows() | {"old.jpg": seen((0, 0.9, BOX), targets=[known(1, 0.5, BOX)])}
    assert masks_of(ledger_of(mixed))[1].labels_without_map == 1
    masks, counts = masks_of(ledger_of(mixed), targets=True)
    assert (list(masks), counts.labels_without_map) == (["right.jpg"], 1)


def test_crop() -> None:
    masks, _ = masks_of(ledger_of(rows(), resize="crop"))
    assert np.flatnonzero(masks["right.jpg"][0].all(axis=0)).tolist() == list(range(100, 150))


@pytest.mark.parametrize(("encoding", "least"), [("polygons", 0.97), ("rle", 1.0)])
def test_coco(tmp_path: Path, encoding: str, least: float) -> None:
    ledger = ledger_of(rows())
    selection = LabelSelection(mask_threshold=1.0)
    export(Snapshot.load(ledger), "coco", tmp_path / "a.json", selection, mask_encoding=encoding)
    read = read_coco(tmp_path / "a.json")
    assert read.dataset["info"]["description"].startswith(
        "weak labels by camworker, which nobody has checked"
    )
    assert read.dataset["info"]["mask_threshold"] == 1
    expected, _ = masks_of(ledger)
    assert {image["file_name"] for image in read.imgs.values()} == set(expected)
    for annotation in read.anns.values():
        (mask,) = expected[read.imgs[annotation["image_id"]]["file_name"]]
        assert share(read.annToMask(annotation).astype(bool), mask) >= least
        assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), 0)
        x, y, width, height = annotation["bbox"]
        assert mask[int(y) : int(y + height), int(x) : int(x + width)].sum() == mask.sum()
        assert mask.any(axis=0).sum() <= width
        assert mask.any(axis=1).sum() == height


def test_coco_results(tmp_path: Path) -> None:
    ledger = ledger_of(rows())
    data = read_coco(exported(ledger, "coco", tmp_path / "data.json", mask_threshold=1.0))
    path = exported(ledger, "coco-results", tmp_path / "results.json", mask_threshold=1.0)
    assert all("bbox" not in result for result in json.loads(path.read_text()))
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(data, data.loadRes(str(path)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def segments(path: Path) -> list[tuple[int, np.ndarray]]:
    """The class and corners [N, 2] of each line of a label file, as Ultralytics reads and checks them."""
    lines = [line.split() for line in path.read_text().strip().splitlines()]
    assert any(len(line) > 6 for line in lines)  # otherwise it takes them for boxes
    read = [(int(line[0]), np.array(line[1:], np.float32).reshape(-1, 2)) for line in lines]
    assert all(corners.min() >= 0 and corners.max() <= 1 for _, corners in read)
    return read


@pytest.fixture(params=["squash", "crop"])
def localized(tmp_path: Path, request: pytest.FixtureRequest) -> Ledger:
    """Discs with two known labels each, localized by ridge maps of all labels; every image is 192 x 128."""
    folder = discs(tmp_path / "in", 5)
    for path in folder.iterdir():
        Image.open(path).resize((192, 128)).save(path)
    localizer = Localizer(
        tapped_package(), device="cpu", precision="float32", top_k=3, refine="ridge", refined="all",
        resize=request.param,
    )  # fmt: skip
    ledger = Ledger(LocalStore(tmp_path / "out"), RECIPE)
    names = [f"class {number}" for number in range(40)]
    ledger.write_recipe(recipe(names, top_k=3, input_size=128, resize=request.param, box_rule="fine:1"))
    items = open_source(str(folder), Classes(tuple(names))).items
    labels = pa.array([[n, n + 1] for n in range(items.num_rows)], pa.list_(pa.int32()))
    items = items.set_column(items.schema.get_field_index("labels"), ITEMS.field("labels"), labels)
    run_generation(ledger, localizer, items, size=3)
    return ledger


@pytest.mark.parametrize("choice", [{"ranks": 3}, {"targets": True}, {}])
def test_the_fine_rule_of_the_recipe_gives_the_stored_boxes(localized: Ledger, choice: dict) -> None:
    def boxes(**rule: str) -> list[object]:
        selection = LabelSelection(**choice, **rule, keep_fallback=True)
        return list(labelled_images(Snapshot.load(localized), selection, Counts()))

    assert boxes(box_rule="fine:1") == boxes()
    assert boxes(box_rule="fine:1.5") != boxes()
    assert boxes(box_rule="cam20") != boxes()


def test_yolo(tmp_path: Path, localized: Ledger) -> None:
    folder = exported(localized, "yolo", tmp_path / "yolo", mask_threshold=1.0, ranks=3)
    assert "weak labels by camworker" in (folder / "data.yaml").read_text()
    images = {
        image.image_id: image
        for image in labelled_images(
            Snapshot.load(localized), LabelSelection(mask_threshold=1.0, ranks=3), Counts()
        )
    }
    with open(folder / "image_ids.csv", newline="") as file:
        for name, image_id in list(csv.reader(file))[1:]:
            image = images.pop(image_id)
            with Image.open(folder / "images" / name) as copy:
                assert copy.size == (image.width, image.height)
            lines = segments(folder / "labels" / Path(name).with_suffix(".txt"))
            assert [label for label, _ in lines] == image.labels
            for (_, corners), mask in zip(lines, image.masks, strict=True):
                drawn = np.zeros((image.height, image.width), np.uint8)
                points = (corners * (image.width, image.height)).round().astype(np.int32)
                cv2.fillPoly(drawn, [points], 1)  # also sets what edges and bridges pass through
                assert drawn[mask.pixels()].mean() > 0.95
                assert drawn.sum() < 1.2 * mask.area
    assert not images


def test_png_masks_are_ground_truth_of_the_same_images(tmp_path: Path) -> None:
    ledger = ledger_of(rows())
    folder = exported(ledger, "masks", tmp_path / "masks", mask_threshold=1.0)
    truth = read_annotations(str(folder))
    read = {row["image_id"]: row for row in truth.table.to_pylist()}
    assert {key: row["label"] for key, row in read.items()} == {
        "right": "cat",
        "in/two": "dog",
        "ring": "dog",
    }
    expected, _ = masks_of(ledger)
    for image_id, (mask,) in expected.items():
        assert np.array_equal(object_pixels([read[image_id.rpartition(".")[0]]["mask"]]), mask)
    assert json.loads((folder / "info.json").read_text())["description"].startswith("weak labels")
    with Image.open(folder / "cat/right.png") as png:
        assert png.mode == "1"
        assert png.text["Description"].startswith("weak labels by camworker, which nobody has checked")
    with open(folder / "masks.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[1] == ["cat/right.png", "right.jpg", "0", "0.8999999761581421", "10000"]


def test_png_masks_of_any_id_and_class_stay_in_the_folder(tmp_path: Path) -> None:
    hostile = {
        image_id: seen((number % len(NAMES), 0.9, BOX), refined=RIGHT[None])
        for number, image_id in enumerate([*IDS, "a.jpg/b.png", ".hidden.jpg", "/", ".."])
    }
    folder = exported(ledger_of(hostile), "masks", tmp_path / "to/masks", mask_threshold=1.0)
    with open(folder / "masks.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["image_id"] for row in table} == set(hostile)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert {row["file"] for row in table} == files
    assert len(files) == len(hostile)
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"masks"}
    assert {file.partition("/")[0] for file in files} == {
        "cat",
        "dog",
        "bird (2)",
        "bird (3)",
        "4",
        "5",
        "6",
        "7",
    }


def test_images_that_differ_in_the_extension(tmp_path: Path) -> None:
    same = {name: seen((0, 0.9, BOX), refined=RIGHT[None]) for name in ("a.jpg", "a.png")}
    folder = exported(ledger_of(same), "masks", tmp_path / "masks", mask_threshold=1.0)
    assert sorted(path.stem[:5] for path in folder.rglob("*.png")) == ["a", "a_png"]


def refusal(ledger: Ledger, form: str = "coco", **choice: object) -> UsageError:
    with pytest.raises(UsageError) as refused:
        export(Snapshot.load(ledger), form, Path("never"), LabelSelection(**choice))
    assert not Path("never").exists()
    return refused.value


def test_refusals() -> None:
    ledger = ledger_of(rows())
    for choice, parameter in (({"mask_threshold": 1.0}, "masks"), ({"box_rule": "fine:0.4"}, "box_rule")):
        error = refusal(ledger_of(ROWS), **choice)
        assert "localize with refinement" in str(error)
        assert error.parameter == parameter
        error = refusal(ledger, **choice, ranks=2)
        assert "the best label only" in str(error)
        assert error.parameter == "top_labels"
    assert "choose coco, coco-results, yolo, masks" in str(refusal(ledger, "voc", mask_threshold=1.0))
    assert refusal(ledger, "masks").parameter == "masks"
    assert refusal(ledger, mask_threshold=1.0, box_rule="fine:1").parameter == "box_rule"
    assert refusal(ledger, mask_threshold=1.0, keep_fallback=True).parameter == "fallback"
    assert "not stored" in str(refusal(ledger, box_rule="fine-multi:1"))


@given(st.floats(0.1, 5))
def test_the_box_around_a_mask_of_one_component_is_that_of_the_fine_rule(threshold: float) -> None:
    """At the original size and on the network's input the edges differ by up to one pixel of the input."""
    selection = LabelSelection(mask_threshold=threshold)
    (mask,) = labelled_images(Snapshot.load(ledger_of({"a": rows()["right.jpg"]})), selection, Counts())
    rule = LabelSelection(box_rule=f"fine:{threshold:f}")
    (box,) = labelled_images(Snapshot.load(ledger_of({"a": rows()["right.jpg"]})), rule, Counts())
    assert np.abs(np.array(mask.boxes) - np.array(box.boxes)).max() <= WIDTH / 32


def test_the_command(localized: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    options = ["--masks", "--mask-threshold", "1.2", "--mask-encoding", "rle", "--top-labels", "2", "--json"]
    assert main(["export", out, "--format", "coco", "--to", str(tmp_path / "a.json"), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["boxes"], result["labels_without_mask"]) == (5, 10, 0)
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["info"]["mask_threshold"] == 1.2
    assert all(isinstance(annotation["segmentation"], dict) for annotation in data["annotations"])
    assert main(["export", out, "--format", "masks", "--targets", "--to", str(tmp_path / "masks")]) == 0
    masks, counts = masks_of(localized, targets=True)
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{counts.boxes} masks of {len(masks)} images in {tmp_path / 'masks'}"
    )
    assert len(list((tmp_path / "masks").glob("*/*.png"))) == counts.boxes > 0
