"""summarize and preview on rows with refined maps: both kinds of maps are shown, each with its boxes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from camworker.boxes.iou import iou
from camworker.boxes.refine import decode_refined
from camworker.boxes.rules import boxes_from_cam
from camworker.dataset import latest
from camworker.frame import Frame, FrameSpec
from camworker.inference.localizer import Localizer
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.networks.package import NetworkPackage
from camworker.refinement import Refinement
from camworker.storage.uris import open_store
from jobs.cli import main
from jobs.photographs import photographs
from support.factories import photograph, run_generation
from support.recipes import make_recipe
from support.summaries import localized

CLASSES = (7, 3, 100)  # of the known labels, in turn
IMAGES = [f"{n:02d}.png" for n in range(3)]
RULE = "fine:0.625"
RAW_RULE = "cam20"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, default_package: NetworkPackage) -> Path:
    """Three photographs of 60 x 40 pixels in out/, and the truth that each is covered by its object."""
    home = tmp_path_factory.mktemp("home")
    (home / "in").mkdir()
    for n, name in enumerate(IMAGES):
        (home / "in" / name).write_bytes(photograph(n, width=60))
    localizer = Localizer(default_package, device="cpu", precision="float32", batch_size=4)
    ledger = Ledger(open_store(str(home / "out")), "r0123456789ab")
    ledger.write_recipe(
        replace(
            make_recipe(top_k=5),
            classes=default_package.classes,
            frame_spec=FrameSpec(224),
            box_rule=RULE,
            refinement=Refinement.of("foreground", "softmax"),
            head="0" * 64,
            taps=("fine", "deep"),
        )
    )
    items = open_source(str(home / "in"), default_package.classes).items
    field = items.schema.field("labels")
    labels = pa.array([[label] for label in CLASSES], field.type)
    items = items.set_column(items.schema.get_field_index("labels"), field, labels)
    run_generation(ledger, localizer, items)
    names = default_package.classes.names
    rows = [f'{image},"{names[label]}",0,0,60,40\n' for image, label in zip(IMAGES, CLASSES, strict=True)]
    (home / "truth.csv").write_text("image_id,label,xmin,ymin,xmax,ymax\n" + "".join(rows))
    return home


def summarize(home: Path, report: Path, *options: str) -> int:
    where = ["--truth", str(home / "truth.csv"), "--report", str(report)]
    return main(["summarize", str(home / "out"), *where, "--json", *options])


def maps_of(home: Path) -> list[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Return the raw map, the decoded refined map and the stored box of each image's known label."""
    rows = sorted(latest(str(home / "out")).to_pylist(), key=lambda row: row["image_id"])
    targets = [row["targets"][0] for row in rows]
    return [
        (
            np.frombuffer(target["cam"], "<f2").reshape(7, 7),
            decode_refined(np.frombuffer(target["refined"], np.uint8).reshape(28, 28)),
            [target["boxes"][0][corner] for corner in ("xmin", "ymin", "xmax", "ymax")],
        )
        for target in targets
    ]


FRAME = Frame(60, 40, 224)


def test_both_kinds_of_boxes_are_judged_and_shown(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarize(home, tmp_path) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert (result["box_rule"], result["maps"], result["raw"]["box_rule"]) == (RULE, "raw", RAW_RULE)
    own = np.array([box for _, _, box in maps_of(home)])
    raw = np.concatenate([boxes_from_cam(cam_hw, FRAME, RAW_RULE) for cam_hw, _, _ in maps_of(home)])
    for boxes, found in ((own, result), (raw, result["raw"])):
        ious = iou(boxes, FRAME.whole_image())
        expected = {str(delta): (ious >= delta).sum() / 3 for delta in (0.3, 0.5, 0.7)}
        assert found["gt_known_at"] == pytest.approx(expected)
    assert (
        "boxes: fine:0.625 of the refined maps; to the right, those of the raw maps (cam20)" in captured.err
    )

    page = (tmp_path / "summary.html").read_text()
    assert 'id="raw"' in page
    assert "refined maps, fine:0.625</th>" in page
    for n, image in enumerate(IMAGES):
        card = _card(page, image)
        assert card.count("<img ") == 3
        assert ", raw map" in card
        assert ", refined map" in card
        cam_hw, refined_hw, _ = maps_of(home)[n]
        # On the photograph and on the refined map; or, where both boxes are the same fallback, on all three.
        fallback = not cam_hw.max() > 0
        assert card.count(_rect(_kind(refined_hw), own[n])) == 2 + fallback
        assert card.count(_rect(_kind(cam_hw, "raw"), raw[n])) == 1 + 2 * fallback
        assert ("covers the whole image" in card) == fallback
        assert card.count(_rect("true", [0, 0, 60, 40])) == 3
    figures = (tmp_path / "figures.csv").read_text()
    assert "\nraw.gt_known_at.0.7," in figures
    assert "\nraw.difference.corloc," in figures


def test_a_rule_for_refined_maps_is_applied_to_the_stored_ones(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarize(home, tmp_path, "--box-rule", "fine:1.50") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert (result["box_rule"], result["raw"]["box_rule"]) == ("fine:1.5", RAW_RULE)
    assert result["top5_localization_error"] is None
    assert result["top1_localization_error"] is not None
    assert (
        "top-5 localization error            not supported: the rows hold the refined map of" in captured.err
    )
    page = (tmp_path / "summary.html").read_text()
    for (_, refined_hw, _), image in zip(maps_of(home), IMAGES, strict=True):
        box = boxes_from_cam(refined_hw, FRAME, "fine:1.5")[0].tolist()
        assert _card(page, image).count(_rect(_kind(refined_hw), box)) >= 2


def test_a_rule_for_raw_maps_is_applied_to_these_alone(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarize(home, tmp_path, "--box-rule", "cam:0.4") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["raw"] is None
    assert result["top5_localization_error"] is not None
    page = (tmp_path / "summary.html").read_text()
    assert 'id="raw"' not in page
    for (cam_hw, _, _), image in zip(maps_of(home), IMAGES, strict=True):
        assert _card(page, image).count("<img ") == 2
        box = boxes_from_cam(cam_hw, FRAME, "cam:0.4")[0].tolist()
        assert _card(page, image).count(_rect(_kind(cam_hw), box)) == 2


def test_maps_refined_changes_the_sweep_and_not_the_boxes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for options in ((), ("--maps", "refined")):
        assert summarize(home, tmp_path, *options) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    raw, refined = results
    assert (raw["maps"], refined["maps"]) == ("raw", "refined")
    assert raw["sweep"] != refined["sweep"]
    assert raw["gt_known_at"] == refined["gt_known_at"]
    assert "on the refined maps" in (tmp_path / "summary.html").read_text()


def test_rules_that_stored_maps_cannot_serve_are_refused_in_one_line(
    home: Path, tmp_path: Path, folder: Path, tiny_localizer: Localizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarize(home, tmp_path, "--box-rule", "fine-multi:1") == 2
    assert "features" in capsys.readouterr().err.splitlines()[-1]
    localized(tmp_path / "plain" / "out", folder, tiny_localizer)
    (tmp_path / "plain" / "truth.csv").write_text("image_id,label\n00.png,cat\n")
    for options in (("--box-rule", "fine:1"), ("--maps", "refined")):
        assert summarize(tmp_path / "plain", tmp_path, *options) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"recipe r0123456789ab holds no refined maps for {' '.join(options)}" in error


def test_the_sheet_shows_the_refined_map_of_the_best_class_and_of_other_known_classes(
    home: Path, tmp_path: Path
) -> None:
    assert main(["preview", str(home / "out"), "--to", str(tmp_path)]) == 0
    page = (tmp_path / "contact_sheet.html").read_text()
    assert "Boxes are made from refined maps (fine:0.625)" in " ".join(page.split())
    rows = {row["image_id"]: row for row in latest(str(home / "out")).to_pylist()}
    for (cam_hw, refined_hw, box), image in zip(maps_of(home), IMAGES, strict=True):
        card, row = _card(page, image), rows[image]
        known = row["targets"][0]["label"] not in row["labels"]
        assert card.count("<img ") == 1 + 2 + 4 + 2 * known
        assert card.count('<div class="pair">') == 1 + known
        first = [row["boxes"][0][corner] for corner in ("xmin", "ymin", "xmax", "ymax")]
        assert card.count(_rect("predicted", first)) >= 2  # on the photograph and on the refined map
        if known:
            assert _rect(_kind(refined_hw), box) in card
            assert _rect(_kind(cam_hw, "raw"), boxes_from_cam(cam_hw, FRAME, RAW_RULE)[0].tolist()) in card


def test_photographs_have_the_refined_map_of_the_best_class_only(home: Path) -> None:
    ledger = Ledger(open_store(str(home / "out")), "r0123456789ab")
    for photo in photographs(Snapshot.load(ledger), IMAGES):
        assert [maps.refined_hw is not None for maps in photo.maps] == [True, False, False, False, False]
        assert [maps.refined_hw is not None for maps in photo.targets] == [True]


def _kind(map_hw: np.ndarray, kind: str = "predicted") -> str:
    return kind if map_hw.max() > 0 else "fallback"


def _card(page: str, image_id: str) -> str:
    return page.partition(f"<h3>{image_id}</h3>")[2].partition("</article>")[0]


def _rect(kind: str, box: Any) -> str:
    xmin, ymin, xmax, ymax = map(float, box)
    return f'<rect class="{kind}" x="{xmin}" y="{ymin}" width="{xmax - xmin}" height="{ymax - ymin}"/>'
