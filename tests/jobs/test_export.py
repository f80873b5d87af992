"""The export command: options, output and refusals, and that it loads neither torch nor Ray."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest

from camworker.exports.export import _FORMATS
from camworker.exports.provenance import FORMATS
from camworker.exports.selection import Counts, LabelSelection
from camworker.exports.weak_labels import labelled_images
from camworker.inference.localizer import Localizer
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import ITEMS
from camworker.storage.local import LocalStore
from jobs.cli import main
from support.cli_runner import camworker
from support.export_rows import recipe
from support.factories import TINY_CLASSES, photograph, run_generation, tiny_package
from support.run_records import make_run_record

RECIPE = "r0123456789ab"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The output of eight photographs and a broken file, all with the known label "dog"."""
    root = tmp_path_factory.mktemp("export")
    (root / "in").mkdir()
    for number in range(8):
        (root / f"in/{number}.png").write_bytes(photograph(number))
    (root / "in/8.png").write_bytes(b"no image")
    items = open_source(str(root / "in"), TINY_CLASSES).items
    labels = pa.array([[1]] * items.num_rows, pa.list_(pa.int32()))
    items = items.set_column(items.schema.get_field_index("labels"), ITEMS.field("labels"), labels)
    ledger = Ledger(LocalStore(root / "out"), RECIPE)
    ledger.write_recipe(recipe(TINY_CLASSES.names, top_k=3))
    localizer = Localizer(tiny_package(), device="cpu", precision="float32")
    run_generation(ledger, localizer, items, size=4)
    ledger.commit_run(make_run_record(ledger, 1))
    return root / "out"


def images(out, **selection):
    ledger = Ledger(LocalStore(out), RECIPE)
    return list(labelled_images(Snapshot.load(ledger), LabelSelection(**selection), Counts()))


def results(capsys, out, tmp_path, *options):
    """Return the --json result of a coco-results export, and the exported boxes."""
    path = tmp_path / "results.json"
    assert main(["export", str(out), "--format", "coco-results", "--to", str(path), "--json", *options]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["path"] == str(path)
    return result, json.loads(path.read_text())


def refusal(capsys, out, *options):
    assert main(["export", str(out), "--format", "coco", *map(str, options)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_offered_format_has_a_writer():
    assert tuple(_FORMATS) == FORMATS


def test_json_result(capsys, out, tmp_path):
    result, boxes = results(capsys, out, tmp_path)
    assert result == {
        "recipe": RECIPE,
        "format": "coco-results",
        "path": str(tmp_path / "results.json"),
        "complete": True,
        "images": 8,
        "boxes": 8,
        "failed": {"unsupported": 1},
        "empty_images": 0,
        "labels_of_other_classes": 0,
        "labels_under_min_score": 0,
        "labels_without_map": 0,
        "labels_without_mask": 0,
        "fallback_boxes": 0,
        "boxes_without_area": 0,
        "unreadable": {},
    }
    assert [box["image_id"] for box in boxes] == list(range(1, 9))


def test_min_score_and_top_labels(capsys, out, tmp_path):
    scores = sorted((score for image in images(out, ranks=3) for score in image.scores), reverse=True)
    result, boxes = results(capsys, out, tmp_path, "--top-labels", "3", "--min-score", repr(scores[9]))
    assert sorted((box["score"] for box in boxes), reverse=True) == scores[:10]
    assert result["labels_under_min_score"] == 24 - 10
    assert result["empty_images"] == 8 - result["images"]


def test_targets(capsys, out, tmp_path):
    result, boxes = results(capsys, out, tmp_path, "--targets", "--fallback", "keep")
    assert result["boxes"] == len(boxes) == 8
    assert {box["category_id"] for box in boxes} == {2}


@pytest.mark.parametrize("given", ["cat,bird", "0, 2", '"bird" , cat', "FILE"])
def test_classes(capsys, out, tmp_path, given):
    if given == "FILE":
        given = str(tmp_path / "names.txt")
        (tmp_path / "names.txt").write_text("cat\n\n 2 \n")
    result, boxes = results(capsys, out, tmp_path, "--classes", given, "--top-labels", "3")
    assert {box["category_id"] for box in boxes} == {1, 3}
    assert (result["boxes"], result["labels_of_other_classes"]) == (16, 8)


def test_box_rule(capsys, out, tmp_path):
    _, stored = results(capsys, out, tmp_path)
    (tmp_path / "results.json").unlink()
    _, same = results(capsys, out, tmp_path, "--box-rule", "cam20")
    (tmp_path / "results.json").unlink()
    _, other = results(capsys, out, tmp_path, "--box-rule", "maxboxacc:0.4")
    assert same == stored
    assert [box["image_id"] for box in other] == [box["image_id"] for box in stored]
    assert other != stored


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "masks"])
def test_every_format(capsys, out, tmp_path, form):
    assert main(["export", str(out), "--format", form, "--to", str(tmp_path / "to")]) == 0
    result = capsys.readouterr().out.splitlines()
    assert result[0] == f"8 boxes of 8 images in {tmp_path / 'to'}"
    assert result[1] == "left out: 1 images that could not be localized (1 unsupported)"
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_an_unfinished_generation_is_reported(capsys, out, tmp_path):
    ledger = Ledger(LocalStore(tmp_path / "out"), RECIPE)
    ledger.write_recipe(recipe(TINY_CLASSES.names, top_k=3))
    items = open_source(str(out.parent / "in"), TINY_CLASSES).items
    run_generation(ledger, Localizer(tiny_package(), device="cpu"), items)
    result, _ = results(capsys, tmp_path / "out", tmp_path)
    assert result["complete"] is False
    assert main(["export", str(tmp_path / "out"), "--format", "coco", "--to", str(tmp_path / "c.json")]) == 0
    assert "run localize again" in capsys.readouterr().out.splitlines()[-1]


def test_refusals(capsys, out, tmp_path):
    to = tmp_path / "to.json"
    assert "no predictions" in refusal(capsys, tmp_path / "nothing", "--to", to)
    assert "r000000000000" in refusal(capsys, out, "--to", to, "--recipe", "r000000000000")
    assert "--top-labels" in refusal(capsys, out, "--to", to, "--targets", "--top-labels", "2")
    assert "have 3 labels each" in refusal(capsys, out, "--to", to, "--top-labels", "4")
    assert "'unicorn'" in refusal(capsys, out, "--to", to, "--classes", "cat,unicorn")
    assert "names no class" in refusal(capsys, out, "--to", to, "--classes", " ,")
    assert "UTF-8" in refusal(capsys, out, "--to", to, "--classes", out.parent / "in/0.png")
    assert "box rule" in refusal(capsys, out, "--to", to, "--box-rule", "nonsense")
    assert "--fallback" in refusal(capsys, out, "--to", to, "--masks", "--fallback", "keep")
    assert "--mask-threshold needs --masks" in refusal(capsys, out, "--to", to, "--mask-threshold", "2")
    assert "--format coco --masks" in refusal(capsys, out, "--to", to, "--mask-encoding", "rle")
    assert "localize with refinement" in refusal(capsys, out, "--to", to, "--masks")
    assert "local" in refusal(capsys, out, "--to", "s3://bucket/key")
    assert "only localize writes" in refusal(capsys, out, "--to", out / "predictions/boxes.json")
    assert "only localize writes" in refusal(capsys, out, "--to", out / "ledger/x/y")
    to.write_text("mine")
    assert "exists already" in refusal(capsys, out, "--to", to)
    assert to.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [to]


@pytest.mark.parametrize(
    "options", [["--format", "pascal"], ["--min-score", "2"], ["--top-labels", "0"], ["--format", "coco"]]
)
def test_arguments_that_cannot_work(options):
    done = camworker("export", "out", *(["--to", "x"] if "coco" not in options else []), *options)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1


def test_neither_torch_nor_ray_is_loaded(out, tmp_path):
    arguments = [
        "export",
        str(out),
        "--format",
        "coco",
        "--to",
        str(tmp_path / "to"),
        "--box-rule",
        "cam:0.3",
    ]
    code = f"import sys, jobs.cli; print(jobs.cli.main({arguments})); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, exit_code, loaded = done.stdout.splitlines()
    assert exit_code == "0"
    assert "camworker.exports" in loaded.split()
    assert not {"torch", "ray", "torchvision"} & set(loaded.split())
