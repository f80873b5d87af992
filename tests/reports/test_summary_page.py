"""The page of a summary: its content, and that it is safe and valid HTML."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from camworker.frame import Frame, FrameSpec
from camworker.ledger.recipe import Recipe
from camworker.metrics.definitions import METRICS
from camworker.metrics.error_categories import ERROR_TITLES
from camworker.metrics.ground_truth.truth import Truth
from camworker.metrics.metric import Estimate
from camworker.metrics.summary import Comparison, TruthFacts
from camworker.reports.cards import MapsOfClass, Section, make_known_card
from camworker.reports.published_results import is_whole_ilsvrc_validation
from camworker.reports.summary_page import (
    differing,
    threshold_sentence,
    verdict,
    write_summary,
)
from support.recipes import make_recipe
from support.summaries import HOSTILE, RECIPE, WHOLE, box, broken, four_of_each, predictions, row, summary_of
from support.summary_pages import Page, write


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    card = make_known_card(
        HOSTILE,
        HOSTILE,
        MapsOfClass(np.ones((2, 2), np.float16), None),
        np.zeros((20, 20, 3), np.uint8),
        Frame(20, 20, 32),
        "cam20",
        {"xmin": 0, "ymin": 0, "xmax": 20, "ymax": 10, "fallback": False},
        [(1, 2, 3, 4)],
        HOSTILE,
    )
    return write(tmp_path_factory.mktemp("page"), *four_of_each(), sections=(Section(HOSTILE, [card]),))


def test_the_headline_gives_value_interval_and_denominator(page: Page) -> None:
    assert page.row("top-1 localization error")[:3] == ["75.00%", "30.06 to 95.44", "4 labels"]
    assert page.row("GT-known localization accuracy")[:3] == ["50.00%", "15.00 to 85.00", "4 labels"]
    assert page.row("CorLoc, mean over classes")[::2][:2] == ["33.33%", "3 classes"]
    assert page.row("MaxBoxAcc at threshold 0.00 (upper bound)")[0] == "50.00%"
    assert page.row("MaxBoxAcc, threshold fixed at 0.20")[:3] == ["50.00%", "15.00 to 85.00", "4 labels"]
    assert page.row("PxAP") == ["not supported: the truth has no masks"]


def test_names_are_escaped_and_nothing_is_loaded(page: Page) -> None:
    assert "script" not in page.tags
    assert page.text.count("&lt;script&gt;") >= 7  # output, class, unknown class, section, card, caption, alt
    addresses = [a[name] or "" for _, a in page.attributes for name in ("src", "href", "action") if name in a]
    assert addresses
    assert all(re.match(r"#[a-z]+$|data:image/jpeg;base64,", address) for address in addresses)
    assert "default-src 'none'" in page.text


def test_every_link_has_a_target(page: Page) -> None:
    ids = {a["id"] for _, a in page.attributes if "id" in a}
    links = {(a["href"] or "")[1:] for tag, a in page.attributes if tag == "a"}
    assert links <= ids
    assert "metrics" in links


def test_tables_pictures_and_charts_have_accessible_names(page: Page) -> None:
    assert all(a.get("alt") for tag, a in page.attributes if tag == "img")
    assert all("scope" in a or a.get("aria-hidden") for tag, a in page.attributes if tag == "th")
    pictures = [a for tag, a in page.attributes if tag == "svg"]
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in pictures)
    assert page.text.count('role="img"') == 3
    assert 'lang="en"' in page.text


def test_errors_sizes_and_classes(page: Page) -> None:
    for kind, count, share in (
        ("correct", "1", "25.0%"),
        ("wrong_class", "1", "25.0%"),
        ("part", "0", "0.0%"),
    ):
        assert page.row(ERROR_TITLES[kind])[:2] == [count, share]
    assert page.row("80 to 100%") == ["2", "100.0%", "50.0%", "100.0%"]
    assert page.row("5 to 10%") == ["1", "0.0%", "0.0%", "0.0%"]
    assert page.row("20 to 40%") == ["0", "\u2013", "\u2013", "\u2013"]
    assert page.row("cat")[:2] == ["2", "100.0%"]
    assert page.row(HOSTILE)[:2] == ["1", "0.0%"]


def test_baselines_failures_and_unmatched_images(page: Page) -> None:
    assert page.row("a box over the whole image") == ["\u2013", "66.67%", "\u2013", "3"]
    assert "1 of 4 labels are left out, because" in page.text
    assert page.row("decode_error") == ["the image file is damaged", "1"]
    assert "1 of 5 images failed (20.00%)" in page.text
    assert page.row("images without ground truth") == ["1", "without"]
    assert page.row("images of the ground truth without a prediction") == ["1", "unseen"]
    assert page.row("rows of the ground truth with 2 classes that the network does not have")[0] == "3"
    assert page.row("ground truth: iscrowd")[0] == "3"
    assert "Expected calibration error 41.67% (15 bins, n = 3 images" in page.text


def test_the_page_says_how_the_threshold_was_chosen(page: Page, tmp_path: Path) -> None:
    assert "it is an upper bound. For comparison, with a threshold fixed at 0.20" in page.text
    ids = [f"{n}.jpg" for n in range(40)]
    rows = predictions(*(row(image_id, [(0, WHOLE)], {0: WHOLE}) for image_id in ids))
    truth = Truth.from_rows(ids, [0] * 40, [WHOLE] * 40)
    chosen = write(tmp_path, rows, truth, select=0.25)
    numbers = re.search(
        r"\(n = (\d+) labels\).*others\s*\(n = (\d+)\), so they are no upper bounds", chosen.text, re.S
    )
    assert numbers
    assert int(numbers[1]) + int(numbers[2]) == 40
    assert 2 <= int(numbers[1]) <= 20
    assert "chosen on 25% of the images" in chosen.text
    assert "(upper bound)" not in chosen.text
    assert chosen.row("MaxBoxAcc, threshold fixed at 0.20")[2] == f"{numbers[2]} labels"


def test_without_a_sweep_there_is_no_sentence_about_the_threshold() -> None:
    summary, _ = summary_of(*four_of_each(), box_rule="dtbox")
    assert threshold_sentence(summary) is None


def test_an_incomplete_output_is_reported(page: Page, tmp_path: Path) -> None:
    assert "incomplete" not in page.text
    assert "The output is incomplete" in write(tmp_path, *four_of_each(), complete=False).text


BOXES = Truth.from_rows(["a", "b"], [0, 0], [WHOLE, WHOLE])
LABELS = Truth.from_rows(["a", "b"], [0, 0])
KNOWN = (row("a", [(0, WHOLE)], {0: WHOLE}), row("b", [(0, WHOLE)], {0: WHOLE}))
NO_MAPS = (row("a", [(0, WHOLE)]), row("b", [(0, WHOLE)], {0: WHOLE}))
FEW = make_recipe(["cat", "dog", "bird", "cow", "hen", "pig"], top_k=2)


@pytest.mark.parametrize(
    ("name", "rows", "truth", "recipe", "about", "why"),
    [
        ("pxap", KNOWN, BOXES, RECIPE, {}, "the truth has no masks"),
        ("top1_localization_error", KNOWN, LABELS, RECIPE, {}, "the truth has no boxes"),
        ("corloc", KNOWN, LABELS, RECIPE, {}, "the truth has no boxes"),
        ("gt_known_localization_accuracy", NO_MAPS, BOXES, RECIPE, {}, "1 known labels have no map"),
        ("pointing_game_accuracy", NO_MAPS, BOXES, RECIPE, {}, "localize the images with their labels"),
        ("max_box_acc", NO_MAPS, BOXES, RECIPE, {}, "1 known labels have no map"),
        ("top5_classification_error", KNOWN, BOXES, FEW, {}, "rank 2 classes; localize with 5 or more"),
        ("max_box_acc", KNOWN, BOXES, RECIPE, {"box_rule": "dtbox"}, "dtbox has no threshold to sweep"),
        ("max_box_acc_v2", KNOWN, BOXES, RECIPE, {"select": 1e-9}, "one share of the images holds none"),
        ("corloc", (row("z", [(0, WHOLE)]),), BOXES, RECIPE, {"box_rule": "dtbox"}, "no image has truth"),
        ("pointing_game_accuracy", KNOWN, LABELS, RECIPE, {}, "no image has such truth"),
    ],
)  # fmt: skip
def test_a_missing_value_has_a_reason(
    name: str, rows: tuple, truth: Truth, recipe: Recipe, about: dict, why: str, tmp_path: Path
) -> None:
    summary, _ = summary_of(predictions(*rows), truth, recipe, **about)
    assert summary.value(name) is None
    reason = summary.estimates[name].reason_missing
    assert reason.startswith("not supported: ")
    assert why in reason
    page = write(tmp_path, predictions(*rows), truth, recipe, **about)
    (title,) = (metric.title for metric in METRICS if metric.name == name)
    assert page.row(title) == [reason]


def test_every_metric_is_in_the_headline(page: Page) -> None:
    shown = {" ".join(cells[0].split()) for cells in page.cells if cells}
    assert all(any(title.startswith(metric.title) for title in shown) for metric in METRICS)


def test_the_page_of_an_output_with_only_failures(tmp_path: Path) -> None:
    page = write(tmp_path, predictions(broken("a", "poison"), broken("b", "removed?")), BOXES)
    assert page.row("poison") == ["the image crashed its decoder", "1"]
    assert page.row("removed?") == ["", "1"]
    assert page.row("top-1 classification error")[0] == "100.00%"
    assert "no image of known size" in page.text


# --- comparison with the paper


ILSVRC_IDS = [f"n{n:08d}" for n in range(1000)]
ILSVRC = make_recipe(ILSVRC_IDS, ILSVRC_IDS, top_k=5)
WHOLE_SET = TruthFacts(50_000, 80_477, True, False, {}, {}, (), "ILSVRC2012_val_00000001.JPEG")
COVERED = replace(summary_of(*four_of_each())[0], images_with_truth=50_000)


@pytest.mark.parametrize(
    "image", ["ILSVRC2012_val_00000001", "val/ILSVRC2012_val_00050000.JPEG", "ILSVRC2012_val_00031337.jpg"]
)
def test_the_whole_validation_set_is_compared_with_the_paper(image: str) -> None:
    facts = TruthFacts(**{**vars(WHOLE_SET), "first_image": image})
    assert is_whole_ilsvrc_validation(COVERED, facts, ILSVRC)


@pytest.mark.parametrize(
    ("covered", "facts", "class_ids"),
    [
        ({"images_with_truth": 49_999}, {}, ILSVRC_IDS),
        ({}, {"images": 49_999}, ILSVRC_IDS),
        ({}, {"boxes": False}, ILSVRC_IDS),
        ({}, {"unknown": {"dragon": 1}}, ILSVRC_IDS),
        ({}, {"first_image": "ILSVRC2012_test_00000001.JPEG"}, ILSVRC_IDS),
        ({}, {"first_image": "0001.jpg"}, ILSVRC_IDS),
        ({}, {"first_image": None}, ILSVRC_IDS),
        ({}, {}, None),
        ({}, {}, ILSVRC_IDS[:-1]),
        ({}, {}, [*ILSVRC_IDS[:-1], ILSVRC_IDS[0]]),
        ({}, {}, [*ILSVRC_IDS[:-1], "cat"]),
    ],
)
def test_anything_else_is_not_compared_with_the_paper(
    covered: dict, facts: dict, class_ids: list[str] | None
) -> None:
    recipe = make_recipe(class_ids or ILSVRC_IDS, class_ids)
    changed = TruthFacts(**{**vars(WHOLE_SET), **facts})
    assert not is_whole_ilsvrc_validation(replace(COVERED, **covered), changed, recipe)


def test_published_results_are_shown_with_their_settings(page: Page, tmp_path: Path) -> None:
    assert "GoogLeNet-GAP" not in page.text
    path = write_summary(tmp_path, COVERED, [ILSVRC], WHOLE_SET, [], output="out", truth="truth.parquet")
    compared = Page(path)
    assert compared.row("tiny, views single, cam20: this recipe") == ["75.00", "50.00", "50.00", "25.00"]
    assert compared.row("GoogLeNet-GAP") == ["56.40", "43.00", "35.0", "13.2"]
    assert compared.row("AlexNet-GAP") == ["67.19", "52.16", "51.1", "26.3"]
    assert compared.row("AlexNet") == ["65.17", "52.64", "\u2013", "\u2013"]
    groups = [cells[0] for cells in compared.cells if cells and cells[0].startswith("the paper: ")]
    assert groups == ["the paper: class activation maps", "the paper: backpropagation"]
    assert "ten crops" in compared.text
    assert "dtbox" in compared.text


# --- compared recipes


@pytest.mark.parametrize(
    ("name", "interval", "expected"),
    [
        ("top1_localization_error", [-0.2, -0.1], "better"),
        ("top1_localization_error", [0.1, 0.2], "worse"),
        ("corloc", [0.1, 0.2], "better"),
        ("corloc", [-0.2, -0.1], "worse"),
        ("corloc", [-0.1, 0.2], ""),
        ("corloc", [0.0, 0.2], ""),
        ("corloc", [-0.2, 0.0], ""),
        ("corloc", None, ""),
    ],
)
def test_a_difference_is_marked_if_its_interval_excludes_zero(
    name: str, interval: list[float] | None, expected: str
) -> None:
    (metric,) = (metric for metric in METRICS if metric.name == name)
    assert verdict(metric, Estimate(0.1, interval)) == expected


def test_compared_recipes_have_a_column_each(page: Page, tmp_path: Path) -> None:
    assert 'id="compared"' not in page.text
    names = [metric.name for metric in METRICS if metric.name != "pxap"]
    values = {**dict.fromkeys(names, 0.25), "pxap": None}
    differences = {**dict.fromkeys(names, Estimate(-0.5, (-0.75, -0.125))), "pxap": Estimate(None)}
    other = Comparison("r999999999999", values, differences)
    flipped = replace(RECIPE, frame_spec=FrameSpec(64, views="flip"))
    text = write(tmp_path, *four_of_each(), others=(flipped,), compared=(other,))
    cells_of_metric = [cells for cells in text.cells if cells and cells[0] == "top-1 localization error"][1]
    assert [" ".join(cell.split()) for cell in cells_of_metric[1:]] == [
        "75.00%",
        "25.00%-50.00 [-75.00, -12.50] better",
    ]
    assert text.row("views") == ["single", "flip"]
    assert text.row("input size") == ["32", "64"]
    assert len([cells for cells in text.cells if cells and cells[0] == "PxAP"]) == 1  # only in the headline


def test_only_different_settings_are_listed() -> None:
    other = make_recipe("abc", weights_fingerprint="1" * 64, output_stride=16, top_k=5)
    assert differing([RECIPE, RECIPE]) == []
    named = dict(differing([RECIPE, other]))
    assert set(named) == {"weights", "output stride", "class names"}
    assert named["output stride"] == ["default", "16"]
    assert named["weights"] == ["000000000000\u2026", "111111111111\u2026"]


def test_the_page_names_the_file_with_all_classes(tmp_path: Path) -> None:
    names = [f"class {n}" for n in range(40)]
    recipe = make_recipe(names, top_k=5)
    rows = predictions(*(row(name, [(n, WHOLE)], {n: WHOLE}) for n, name in enumerate(names)))
    page = write(tmp_path, rows, Truth.from_rows(names, list(range(40)), [WHOLE] * 40), recipe)
    told = " ".join(page.text.split())
    assert (
        "The 15 best and 15 worst of 40 classes with at least 1 label; <code>per_class.csv</code> has all."
        in told
    )


def test_boxes_are_drawn_in_pixels_of_the_original(page: Page) -> None:
    assert page.text.count('<rect class="predicted" x="0.0" y="0.0" width="20.0" height="10.0"/>') == 2
    assert page.text.count('<rect class="true" x="1.0" y="2.0" width="2.0" height="2.0"/>') == 2


def test_the_rows_of_these_tests() -> None:
    assert box(1, WHOLE)["xmax"] == 20
    summary, _ = summary_of(*four_of_each())
    assert summary.instances == 4
    assert summary.errors["no_box"] == 1
