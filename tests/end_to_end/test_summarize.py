"""summarize as people run it, on small outputs whose figures are known by hand."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.classes import Classes
from camworker.inputs import ReadPolicy
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Part, Plan
from camworker.metrics.confidence import wilson
from camworker.storage.local import LocalStore
from jobs.cli import main
from jobs.summarize import tally_parts
from support.prediction_rows import FAR, Row, broken, known, part, row
from support.recipes import make_recipe
from support.run_records import make_run_record

FIRST, SECOND = "r000000000001", "r000000000002"
RECIPE = make_recipe("abcdefgh", input_size=4, top_k=5)
# In a frame of 4 pixels: 0.4 over the upper half, of an image of 100 pixels its first three quarters; a peak.
CAM = np.zeros((4, 4))
CAM[:2, :3] = 0.4
CAM[:2, :2] = 1
TOP, TOP_LEFT = (0, 0, 75, 50), (0, 0, 50, 50)

TRUTH = f"""image_id,label,xmin,ymin,xmax,ymax
one,b,{",".join(map(str, TOP))}
two,b,{",".join(map(str, TOP_LEFT))}
three,c,{",".join(map(str, TOP))}
bad,b,0,0,10,10
absent,b,0,0,10,10
one,unicorn,0,0,10,10
"""


def an_image(image_id: str, label: int = 1, best: int = 1) -> Row:
    """An image whose class best comes first, and whose known label has its map too."""
    others = [k for k in range(7, -1, -1) if k != best][:4]
    pairs = [(best, TOP), *((k, FAR) for k in others)]
    return row(image_id, pairs, known(label, TOP, cam=CAM), cams=[CAM] * 5)


PARTS = {
    (1, 0): [an_image("one"), an_image("two"), an_image("stray")],
    (1, 1): [an_image("three", 2, best=1), broken("bad")],
}


def commit(out: Path, parts: dict[tuple[int, int], list[Row]], recipe: str = FIRST, **changes: Any) -> Ledger:
    """An output of these rows, by generation and shard; its generations are complete."""
    ledger = Ledger(LocalStore(str(out)), recipe)
    ledger.write_recipe(replace(RECIPE, **changes))
    parts_of: dict[int, list[Part]] = {}
    for (generation, shard), rows in parts.items():
        sink = pa.BufferOutputStream()
        pq.write_table(part(*rows, shape=(5, 4, 4), generation=generation), sink, write_page_checksum=True)
        data, key = sink.getvalue().to_pybytes(), ledger.layout.part_key(generation, shard)
        assert ledger.store.create(key, data)
        made = Part(shard, key, len(rows), len(data), hashlib.sha256(data).hexdigest(), {})
        parts_of.setdefault(generation, []).append(made)
    for generation, made_parts in parts_of.items():
        ledger.commit_plan(Plan(recipe, generation, (), ReadPolicy(check_identity=False)))
        ledger.commit_run(make_run_record(ledger, generation, made_parts))
    return ledger


@pytest.fixture
def out(tmp_path: Path) -> Path:
    commit(tmp_path / "out", PARTS)
    return tmp_path / "out"


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "truth.csv"
    path.write_text(TRUTH)
    return path


class Command:
    """summarize in this process: its exit code, its streams."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, out: Path, truth: Path | str, *options: str | Path) -> tuple[int, str, str]:
        try:
            code = main(["summarize", str(out), "--truth", str(truth), *map(str, options)])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return code, *self.capsys.readouterr()

    def figures(self, out: Path, truth: Path | str, *options: str | Path) -> dict[str, Any]:
        code, said, errors = self(out, truth, "--json", *options)
        assert code == 0, errors
        assert len(said.splitlines()) == 1
        return json.loads(said)

    def refused(self, out: Path, truth: Path | str, *options: str | Path) -> str:
        """The one line that tells what was wrong."""
        code, said, errors = self(out, truth, *options)
        assert code == 2
        assert said == ""
        assert len(errors.splitlines()) == 1
        assert errors.startswith("camworker summarize: ")
        return errors


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def test_the_figures_of_an_output(out: Path, truth: Path, command: Command) -> None:
    result = command.figures(out, truth)
    assert result["recipe"] == FIRST
    assert result["complete"] is True
    assert (result["box_rule"], result["iou_convention"], result["select_threshold_on"]) == (
        *("cam20", "half-open"),
        None,
    )
    assert (result["images"], result["failed"]) == (5, {"decode_error": 1})
    assert (result["images_with_truth"], result["images_without_truth"]) == (4, 1)
    assert (result["truth_without_image"], result["unknown_classes"]) == (1, {"unicorn": 1})
    # "three" is taken for b; "bad" failed. IoU of one and three is 1, of two 2/3.
    assert result["top1_classification_error"] == result["top1_localization_error"] == 2 / 4
    assert result["top5_classification_error"] == 2 / 4
    assert result["gt_known_localization_accuracy"] == 3 / 4
    assert result["corloc"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["top1_classification_error_ci95"] == list(wilson(2, 4))
    assert result["compared"] == []
    contract = [
        *("top5_localization_error", "gt_known_localization_accuracy", "max_box_acc", "max_box_acc_v2"),
        *("pointing_game_accuracy", "corloc", "top1_localization_error"),
    ]
    for name in contract:
        low, high = result[f"{name}_ci95"]
        assert 0 <= low <= result[name] <= high <= 1
    assert set(result["max_box_acc_at"]) == set(result["optimal_threshold"]) == {"0.3", "0.5", "0.7"}
    assert result["pxap"] is result["pxap_ci95"] is None


def test_what_is_said_to_people(out: Path, truth: Path, command: Command) -> None:
    code, said, errors = command(out, truth)
    assert (code, errors) == (0, "")
    for line in (
        "5 images, 1 failed; 4 with truth (4 labels)",
        "images without truth: 1; images of the truth that are not in these predictions: 1",
        "1, of 1 classes that this network does not have (unicorn)",
    ):
        assert line in said
    assert "50.00%" in said
    assert "unfinished" not in said


def test_as_a_process_it_needs_neither_torch_nor_ray(out: Path, truth: Path, command: Command) -> None:
    code = (
        "import sys; from jobs.cli import main; code = main(sys.argv[1:]);"
        "sys.stderr.write('loaded: ' + str({'torch', 'ray', 'timm'} & set(sys.modules))); sys.exit(code)"
    )
    arguments = ["summarize", str(out), "--truth", str(truth), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith("loaded: set()")
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == command.figures(out, truth)


def test_boxes_made_anew(out: Path, truth: Path, command: Command) -> None:
    stored = command.figures(out, truth)
    same = command.figures(out, truth, "--box-rule", "cam:0.2")
    for name in (
        "top5_localization_error",
        "gt_known_localization_accuracy",
        "corloc",
        "iou_histogram",
        "errors",
    ):
        assert same[name] == stored[name]
    # Above 0.4 the box is TOP_LEFT: 2/3 of one and three.
    high = command.figures(out, truth, "--box-rule", "cam:0.5")
    assert high["box_rule"] == "cam:0.5"
    assert high["gt_known_localization_accuracy"] == 3 / 4
    assert high["iou_histogram"]["instances"][13] == 2
    assert high["iou_histogram"]["instances"][19] == 1
    assert stored["iou_histogram"]["instances"][19] == 2
    assert high["sweep"]["rule"] == "cam"
    # TOP up to 0.39, TOP_LEFT from 0.4 on; either reaches 1/2 for three of four.
    assert high["sweep"]["max_box_acc"] == [0.75] * 100
    assert high["sweep"]["0.7"] == [0.5] * 40 + [0.25] * 60
    assert high["max_box_acc_at"]["0.7"] == 0.5


def test_a_rule_s_spelling_does_not_matter(out: Path, truth: Path, command: Command) -> None:
    plain, other = (command.figures(out, truth, "--box-rule", rule) for rule in ("cam:0.5", "cam:.50"))
    assert other == plain


@pytest.mark.parametrize("rule", ["dtbox", "maxboxacc:0.3", "cam20-multi"])
def test_rules_without_a_threshold_of_ours(out: Path, truth: Path, command: Command, rule: str) -> None:
    result = command.figures(out, truth, "--box-rule", rule)
    assert result["box_rule"] == rule
    assert result["gt_known_localization_accuracy"] is not None
    swept = {"dtbox": None, "maxboxacc:0.3": "maxboxacc", "cam20-multi": "cam"}[rule]
    assert (result["sweep"] and result["sweep"]["rule"]) == swept
    assert (result["max_box_acc"] is None) == (swept is None)


def test_dtbox_of_the_recipe_has_no_sweep_but_another_rule_has(
    tmp_path: Path, truth: Path, command: Command
) -> None:
    commit(tmp_path / "out", PARTS, box_rule="dtbox")
    assert command.figures(tmp_path / "out", truth)["max_box_acc"] is None
    assert command.figures(tmp_path / "out", truth, "--box-rule", "cam20")["max_box_acc"] == 0.75


def test_recipes_side_by_side(out: Path, truth: Path, command: Command) -> None:
    worse = row("one", [(2, FAR)], known(1, FAR, cam=CAM), cams=[CAM] * 5)
    commit(out, {(1, 0): [worse, an_image("two"), an_image("three", 2, best=2), broken("bad")]}, SECOND)
    said = command.refused(out, truth)
    assert f"several recipes ({FIRST}, {SECOND}): choose one (--recipe)" in said
    alone = command.figures(out, truth, "--recipe", FIRST)
    assert alone["compared"] == []
    both = command.figures(out, truth, "--recipe", FIRST, "--recipe", SECOND, "--recipe", FIRST)
    assert {**both, "compared": []} == alone
    (other,) = both["compared"]
    second = command.figures(out, truth, "--recipe", SECOND)
    assert other["recipe"] == second["recipe"] == SECOND
    names = ("top1_classification_error", "gt_known_localization_accuracy", "max_box_acc", "corloc")
    for name in names:
        assert other[name] == second[name]
        assert other["difference"][name] == pytest.approx(second[name] - alone[name])
        low, high = other["difference"][f"{name}_ci95"]
        assert low <= other["difference"][name] <= high
    assert other["difference"]["gt_known_localization_accuracy"] == -0.25
    assert other["difference"]["pxap"] is other["difference"]["pxap_ci95"] is None
    back = command.figures(out, truth, "--recipe", SECOND, "--recipe", FIRST)
    assert back["recipe"] == SECOND
    assert back["compared"][0]["difference"]["gt_known_localization_accuracy"] == 0.25
    _, said, _ = command(out, truth, "--recipe", FIRST, "--recipe", SECOND)
    assert f"{SECOND} less {FIRST}, in points:" in said
    assert "-25.00" in said


def test_a_recipe_that_is_compared_with_itself_under_another_name_does_not_differ(
    out: Path, truth: Path, command: Command
) -> None:
    commit(out, PARTS, SECOND)
    difference = command.figures(out, truth, "--recipe", FIRST, "--recipe", SECOND)["compared"][0][
        "difference"
    ]
    given = {name: value for name, value in difference.items() if value is not None}
    by_iou, by_iou_ci95 = given.pop("gt_known_at"), given.pop("gt_known_at_ci95")
    assert len(given) == 18  # nine figures: all but PxAP
    assert all(value in (0, [0, 0]) for value in (*given.values(), *by_iou.values(), *by_iou_ci95.values()))


def test_the_latest_row_of_an_image_counts(tmp_path: Path, truth: Path, command: Command) -> None:
    missed = row("one", [(1, FAR)], known(1, FAR, cam=CAM), cams=[CAM] * 5)
    before = {(1, 0): [missed, broken("two"), an_image("three", 2)], (1, 1): [an_image("gone")]}
    after = {(2, 0): [an_image("one"), broken("gone", "removed")], (4, 0): [an_image("two")]}
    commit(tmp_path / "out", {**before, **after})
    result = command.figures(tmp_path / "out", truth)
    assert (result["images"], result["failed"]) == (3, {})
    assert result["gt_known_localization_accuracy"] == 1
    assert result["images_without_truth"] == 0


def test_a_generation_that_is_unfinished_is_told(out: Path, truth: Path, command: Command) -> None:
    ledger = Ledger(LocalStore(str(out)), FIRST)
    ledger.commit_plan(Plan(FIRST, 2, (), ReadPolicy(check_identity=False)))
    assert command.figures(out, truth)["complete"] is False
    assert "a generation is unfinished" in command(out, truth)[1]


@pytest.mark.parametrize(
    ("truth_boxes", "convention", "half", "less"),
    [
        # Against TOP, 75 x 50 pixels: 75 x 25 is half of it, whose last pixels are 74 and 24.
        ("half-open", "half-open", "75,25", "75,24.99"),
        ("inclusive", "half-open", "74,24", "74,23.99"),
        # TOP counts as 76 x 51: 75 x 25.84 is half of it.
        ("inclusive", "inclusive", "74,24.84", "74,24.83"),
        # 76 x 25.5 is.
        ("half-open", "inclusive", "75,24.5", "75,24.49"),
    ],
)
def test_corner_and_iou_conventions(
    out: Path, tmp_path: Path, command: Command, truth_boxes: str, convention: str, half: str, less: str
) -> None:
    path = tmp_path / "corners.csv"
    path.write_text(f"image_id,label,xmin,ymin,xmax,ymax\none,b,0,0,{half}\ntwo,b,0,0,{less}\n")
    options = ("--truth-boxes", truth_boxes, "--iou-convention", convention)
    result = command.figures(out, path, *options)
    assert result["iou_convention"] == convention
    assert result["gt_known_localization_accuracy"] == 0.5
    worst = tmp_path / "worst.csv"
    worst.write_text(path.read_text().replace(half, less))
    assert command.figures(out, worst, *options)["gt_known_localization_accuracy"] == 0


def test_excluded_images_count_for_classification_only(
    out: Path, truth: Path, tmp_path: Path, command: Command
) -> None:
    listed = tmp_path / "excluded.txt"
    listed.write_text("bad\nthree\n")
    result = command.figures(out, truth, "--exclude", listed)
    assert (result["instances"], result["instances_with_boxes"]) == (4, 2)
    assert result["top1_classification_error"] == 2 / 4
    assert result["top1_localization_error"] == 0
    assert result["gt_known_localization_accuracy"] == result["corloc"] == 1
    assert result["truth_notes"]["excluded_from_localization"] == 2
    assert "excluded_from_localization: 2" in command(out, truth, "--exclude", listed)[1]


def test_a_threshold_from_some_of_the_images(tmp_path: Path, command: Command) -> None:
    ids = [f"image {n}" for n in range(40)]
    commit(tmp_path / "out", {(1, 0): [an_image(i) for i in ids]})
    path = tmp_path / "truth.csv"
    corners = ",".join(map(str, TOP_LEFT))
    path.write_text("image_id,label,xmin,ymin,xmax,ymax\n" + "".join(f"{i},b,{corners}\n" for i in ids))
    options = ("--box-rule", "cam20", "--select-threshold-on", "0.3")
    result = command.figures(tmp_path / "out", path, *options)
    assert result["select_threshold_on"] == 0.3
    assert result["max_box_acc_at"] == {"0.3": 1, "0.5": 1, "0.7": 1}
    assert result["optimal_threshold"] == {"0.3": 0, "0.5": 0, "0.7": 0.4}
    assert result["max_box_acc_at_fixed_threshold"] == {"0.3": 1, "0.5": 1, "0.7": 0}
    said = command(tmp_path / "out", path, *options)[1]
    assert "upper bound" not in said
    assert "upper bound" in command(tmp_path / "out", path)[1]


def test_top5_of_networks_with_few_places(tmp_path: Path, truth: Path, command: Command) -> None:
    commit(tmp_path / "few", PARTS, top_k=3)
    assert command.figures(tmp_path / "few", truth)["top5_classification_error"] is None
    rows = [row("one", [(0, TOP)], known(0, TOP, cam=CAM)), row("two", [(1, TOP)], known(0, TOP, cam=CAM))]
    commit(tmp_path / "all", {(1, 0): rows}, classes=Classes(("b", "c", "d")), top_k=3)
    assert command.figures(tmp_path / "all", truth)["top5_classification_error"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box-rule", "cam:2"], "unknown box rule 'cam:2'"),
        (["--box-rule", "largest"], "unknown box rule 'largest'"),
        (["--select-threshold-on", "0"], "above 0 and below 1"),
        (["--select-threshold-on", "1"], "above 0 and below 1"),
        (["--select-threshold-on", "half"], "has to be a number between 0 and 1"),
        (["--iou-convention", "both"], "invalid choice: 'both'"),
        (["--truth-boxes", "closed"], "invalid choice: 'closed'"),
        (["--workers", "0"], "a whole number, at least 1"),
        (["--recipe", "r00000000000f"], "holds no recipe r00000000000f"),
        (["--exclude", "absent.txt"], "absent.txt cannot be read"),
        (["--masks", "masks"], "names no mask files"),
        (["--truth-classes", "index"], "match them by name"),
        (["--report", "{truth}"], "there is a file of that name"),
    ],
)
def test_what_cannot_be_asked_for(
    out: Path, truth: Path, command: Command, options: list[str], message: str
) -> None:
    assert message in command.refused(out, truth, *(o.replace("{truth}", str(truth)) for o in options))


def test_a_truth_that_cannot_be_used(out: Path, tmp_path: Path, command: Command) -> None:
    assert "cannot be read as CSV" in command.refused(out, tmp_path / "absent.csv")
    other = tmp_path / "other.csv"
    other.write_text("image_id,label\none,unicorn\n")
    assert "none of its labels ('unicorn'" in command.refused(out, other)


def test_an_output_that_cannot_be_read(out: Path, truth: Path, tmp_path: Path, command: Command) -> None:
    assert "holds no predictions" in command.refused(tmp_path / "nothing", truth)
    Ledger(LocalStore(str(tmp_path / "empty")), FIRST).write_recipe(RECIPE)
    assert "no committed part yet" in command.refused(tmp_path / "empty", truth)


def test_labels_without_boxes(out: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image_id,label\none,b\nthree,c\n")
    result = command.figures(out, path)
    assert result["top1_classification_error"] == 0.5
    assert result["corloc"] is result["baselines"] is None


def test_the_report(out: Path, truth: Path, tmp_path: Path, command: Command) -> None:
    home = tmp_path / "report"
    result = command.figures(out, truth, "--report", home)
    assert (home / "summary.html").stat().st_size > 2000
    code, said, _ = command(out, truth, "--report", home)
    assert code == 0
    assert f"open {home / 'summary.html'}" in said
    written = json.loads((home / "summary.json").read_text())
    assert {name: written[name] for name in result} == result
    assert written["unmatched"] == {"image_without_truth": ["stray"], "truth_without_image": ["absent"]}


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small outputs are tallied by Ray too."""
    monkeypatch.setattr(tally_parts, "LOCAL_BYTES", -1)


@pytest.mark.ray
def test_ray_gives_what_this_process_gives(
    tmp_path: Path,
    truth: Path,
    command: Command,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    later = {(2, 0): [an_image("two", 1, best=3)], (2, 1): [broken("stray", "removed"), an_image("more")]}
    commit(out, {**PARTS, **later})
    options = ("--json", "--box-rule", "cam:0.3", "--select-threshold-on", "0.5")
    monkeypatch.chdir(tmp_path)
    code, here, _ = command(Path("out"), "truth.csv", *options)
    assert code == 0
    request.getfixturevalue("on_ray")
    code, there, errors = command(Path("out"), "truth.csv", *options)
    assert code == 0, errors
    assert there == here


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_task_refuses_is_one_line(out: Path, tmp_path: Path, command: Command, on_ray: None) -> None:
    other = tmp_path / "other.csv"
    other.write_text("image_id,label\none,unicorn\n")
    assert "none of its labels ('unicorn'" in command.refused(out, other)


@pytest.mark.ray
def test_a_cluster_that_is_not_there(out: Path, truth: Path, command: Command) -> None:
    assert "no Ray cluster answers" in command.refused(out, truth, "--address", "127.0.0.1:1")
