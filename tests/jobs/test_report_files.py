"""summarize --report on a small output: its files agree, its pictures are the right ones."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camworker.boxes.rules import boxes_from_cam
from camworker.dataset import latest
from camworker.frame import Frame
from camworker.inference.localizer import Localizer
from camworker.ledger.ledger import Ledger
from camworker.metrics.definitions import METRICS
from jobs.cli import main
from support.factories import photograph
from support.summaries import localized

NAMES = ("cat", "dog", "bird")
IMAGES = [f"{n:02d}.png" for n in range(11)]


@pytest.fixture
def output(folder: Path, tmp_path: Path, tiny_localizer: Localizer) -> Ledger:
    """Eleven photographs, one of them broken, and truth for nine of them and for one more."""
    (folder / "08.png").write_bytes(b"not an image")
    rows = [f"{IMAGES[n]},{NAMES[n % 3]},0,0,{20 + n},40\n" for n in range(9)]
    rows += ["gone.png,cat,0,0,9,9\n", "00.png,dragon,0,0,9,9\n"]
    (tmp_path / "truth.csv").write_text("image_id,label,xmin,ymin,xmax,ymax\n" + "".join(rows))
    return localized(tmp_path / "out", folder, tiny_localizer)


def summarize(home: Path, *options: str) -> int:
    where = ["--truth", str(home / "truth.csv"), "--report", str(home / "report")]
    return main(["summarize", str(home / "out"), *where, "--json", *options])


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_files_hold_what_the_command_says(
    output: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarize(tmp_path) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    report = tmp_path / "report"
    kept = json.loads((report / "summary.json").read_text())
    assert {name: kept[name] for name in printed} == printed
    assert kept["failed"] == {"unsupported": 1}
    assert (kept["images"], kept["instances"]) == (11, 9)

    figures = {row["name"]: row for row in table(report / "figures.csv")}
    shown = {name: printed[name] for name in figures if f"{name}_ci95" in printed}
    at, at_ci95 = printed["gt_known_at"], printed["gt_known_at_ci95"]
    for name, value, interval in (
        *((name, value, printed[f"{name}_ci95"] or ["", ""]) for name, value in shown.items()),
        *((f"gt_known_at.{delta}", at[delta], at_ci95[delta]) for delta in ("0.3", "0.5", "0.7")),
    ):
        assert figures[name]["value"] == ("" if value is None else repr(value))
        assert [figures[name]["low"], figures[name]["high"]] == [str(end) for end in interval]

    assert len(shown) == len(METRICS) - 2  # all but GT-known at the two other thresholds

    classes = table(report / "per_class.csv")
    assert [(row["label"], row["name"], row["instances"]) for row in classes] == [
        ("0", "cat", "3"),
        ("1", "dog", "3"),
        ("2", "bird", "3"),
    ]
    thresholds = table(report / "thresholds.csv")
    assert len(thresholds) == 100
    assert max(float(row["max_box_acc"]) for row in thresholds) == printed["max_box_acc"]
    unmatched = [tuple(row.values()) for row in table(report / "unmatched.csv")]
    assert sorted(unmatched[:2]) == [("image_without_truth", name, "1") for name in ("09.png", "10.png")]
    assert unmatched[2:] == [("truth_without_image", "gone.png", "1"), ("unknown_class", "dragon", "1")]


def test_a_report_without_a_sweep_leaves_no_old_thresholds_behind(output: Ledger, tmp_path: Path) -> None:
    assert summarize(tmp_path) == 0
    assert summarize(tmp_path, "--box-rule", "dtbox") == 0
    assert (tmp_path / "report" / "thresholds.csv").read_text() == "threshold\n"
    assert "dtbox has no threshold to sweep" in (tmp_path / "report" / "summary.html").read_text()


@pytest.mark.parametrize("rule", ["cam20", "cam:0.6"])
def test_every_image_is_shown_with_the_box_that_was_judged(output: Ledger, tmp_path: Path, rule: str) -> None:
    assert summarize(tmp_path, "--box-rule", rule) == 0
    page = (tmp_path / "report" / "summary.html").read_text()
    assert "All images, the highest IoU first" in page
    assert page.count("<article") == 8  # with truth, and not broken
    rows = {row["image_id"]: row for row in latest(str(tmp_path / "out")).to_pylist()}
    for n in range(8):
        shown = _card(page, IMAGES[n])
        row = rows[IMAGES[n]]
        cam_hw = np.frombuffer(row["targets"][0]["cam"], "<f2").reshape(8, 4)
        box = boxes_from_cam(cam_hw, Frame(20 + n, 40, 32), rule)[0].tolist()
        kind = "fallback" if row["targets"][0]["boxes"][0]["fallback"] else "predicted"
        assert shown.count(_rect(kind, box)) == 2
        assert shown.count(_rect("true", [0.0, 0.0, 20.0 + n, 40.0])) == 2
        iou = (box[2] - box[0]) * (box[3] - box[1]) / ((20 + n) * 40)  # the truth is the whole image
        assert f"{NAMES[n % 3]}: IoU {iou:.2f}." in shown
        assert f"First class: {row['names'][0]}, {row['scores'][0]:.2f}." in shown
        assert f"map of {NAMES[n % 3]}" in shown


def test_an_image_with_two_labels_has_a_card_for_each(output: Ledger, tmp_path: Path) -> None:
    """Only labels that were known when it was localized have a map; the other's is not shown."""
    with open(tmp_path / "truth.csv", "a") as file:
        file.write("00.png,dog,0,0,5,5\n00.png,cat,2,3,4,5\n")
    assert summarize(tmp_path) == 0
    page = (tmp_path / "report" / "summary.html").read_text()
    assert page.count("<h3>00.png</h3>") == 1
    shown = _card(page, "00.png")
    assert shown.count(_rect("true", [2.0, 3.0, 4.0, 5.0])) == 2
    assert _rect("true", [0.0, 0.0, 5.0, 5.0]) not in shown  # a dog's


def test_more_images_than_fit_are_the_best_and_the_worst(tmp_path: Path, tiny_localizer: Localizer) -> None:
    photos = tmp_path / "in"
    photos.mkdir()
    for n in range(26):
        (photos / f"{n:02d}.png").write_bytes(photograph(n))
    localized(tmp_path / "out", photos, tiny_localizer)
    # The truth is ever larger, so that IoU with it tells images apart.
    rows = [f"{n:02d}.png,{NAMES[n % 3]},0,0,{n + 4},40\n" for n in range(26)]
    (tmp_path / "truth.csv").write_text("image_id,label,xmin,ymin,xmax,ymax\n" + "".join(rows))
    assert summarize(tmp_path) == 0
    page = (tmp_path / "report" / "summary.html").read_text()
    best, worst = page.index("Highest IoU</h3>"), page.index("Lowest IoU</h3>")
    assert page.count("<article") == page[best:].count("<article") == 24
    assert page[best:worst].count("<article") == 12
    ious = [float(text[:4]) for text in page.split(": IoU ")[1:]]
    assert ious[:12] == sorted(ious[:12], reverse=True)
    assert ious[12:] == sorted(ious[12:])
    assert ious[11] >= ious[-1]


def test_photographs_that_are_gone_are_told_of(output: Ledger, folder: Path, tmp_path: Path) -> None:
    (folder / "03.png").unlink()
    (folder / "04.png").write_bytes(photograph(99))
    assert summarize(tmp_path) == 0
    page = (tmp_path / "report" / "summary.html").read_text()
    assert page.count("<article") == 8
    assert page.count("<img ") == 6 * 2
    assert "cannot be shown: the file was replaced after it was planned" in _card(page, "04.png")
    assert "cannot be shown" in _card(page, "03.png")
    assert "IoU" in _card(page, "03.png")


def test_truth_without_boxes_gives_a_report_without_pictures(output: Ledger, tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("image_id,label\n" + "".join(f"{i},cat\n" for i in IMAGES))
    assert summarize(tmp_path) == 0
    page = (tmp_path / "report" / "summary.html").read_text()
    assert "<img" not in page
    assert 'id="images"' not in page
    assert "not supported: the truth has no boxes" in page


def test_masks_give_figures_of_maps_and_none_of_boxes(output: Ledger, tmp_path: Path) -> None:
    for n in range(8):
        mask = np.zeros((40, 20 + n), np.uint8)
        mask[:20] = 255
        path = tmp_path / "masks" / NAMES[n % 3] / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    # An image that failed, so that each part has truth.
    Image.fromarray(mask).save(tmp_path / "masks" / "bird" / "08.png")
    assert summarize(tmp_path, "--truth", str(tmp_path / "masks")) == 0
    kept = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert kept["mask_pixels"] == 9 * 224 * 224
    page = " ".join((tmp_path / "report" / "summary.html").read_text().split())
    assert f"<b>{100 * kept['pxap']:.2f}%</b>" in page
    assert "451,584 pixels" in page
    assert "not supported: the truth has no boxes" in page
    assert "<img" not in page


def test_recipes_of_one_output_stand_side_by_side(
    output: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("predictions", "ledger"):
        home = tmp_path / "out" / folder
        shutil.copytree(home / "recipe=r0123456789ab", home / "recipe=rffffffffffff")
    recipe = tmp_path / "out" / "ledger" / "recipe=rffffffffffff" / "recipe.json"
    recipe.write_text(json.dumps({**output.read_recipe().to_json(), "precision": "bfloat16"}))
    assert summarize(tmp_path, "--recipe", "r0123456789ab", "--recipe", "rffffffffffff") == 0
    page = (tmp_path / "report" / "summary.html").read_text()
    assert re.search(r">precision</th><td>float32</td><td>bfloat16</td>", page)
    # The same rows: no difference, and none that is marked.
    assert page.count("[+0.00, +0.00]") == 11
    assert 'class="better"' not in page
    assert 'class="worse"' not in page
    figures = {row["name"]: row for row in table(tmp_path / "report" / "figures.csv")}
    corloc = figures["compared.rffffffffffff.difference.corloc"]
    assert (corloc["value"], corloc["low"], corloc["high"]) == ("0.0", "0.0", "0.0")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["compared"][0]["recipe"] == "rffffffffffff"


def test_a_report_that_cannot_be_written_is_the_users_to_mend(
    output: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report" / "figures.csv").mkdir(parents=True)
    assert summarize(tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written" in error
    assert "--report" in error


def test_without_report_nothing_is_written(output: Ledger, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["summarize", str(tmp_path / "out"), "--truth", str(tmp_path / "truth.csv")]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def _card(page: str, image_id: str) -> str:
    """The HTML of an image's card."""
    return page.partition(f"<h3>{image_id}</h3>")[2].partition("</article>")[0]


def _rect(kind: str, box: Any) -> str:
    xmin, ymin, xmax, ymax = box
    return f'<rect class="{kind}" x="{xmin}" y="{ymin}" width="{xmax - xmin}" height="{ymax - ymin}"/>'
