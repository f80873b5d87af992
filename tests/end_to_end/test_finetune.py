"""The finetune command with Ray Train: the package, its reproducibility, and resuming after a kill."""

import json
import os
import re
import signal
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.dataset import latest
from camworker.networks.package import load
from support.cli_runner import camworker, camworker_here, start
from support.factories import encode

pytestmark = pytest.mark.ray

NETWORK = ("--network", "timm:tinynet_e", "--init", "random", "--input-size", "128")
EPOCHS = 3


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Noise images with a blue or a red square, one folder per colour, and one broken file."""
    root, random = tmp_path_factory.mktemp("squares") / "in", np.random.default_rng(0)
    for name, colour in (("blue", (30, 30, 220)), ("red", (220, 30, 30))):
        (root / name).mkdir(parents=True)
        for n in range(10):
            pixels = random.integers(0, 80, (60, 70, 3)).astype(np.uint8)
            y, x = random.integers(0, 30, 2)
            pixels[y : y + 30, x : x + 30] = colour
            (root / name / f"{n}.png").write_bytes(encode(pixels, "PNG"))
    (root / "red/broken.jpg").write_bytes(b"\xff\xd8\xff and then nothing")
    return root


@pytest.fixture(scope="module")
def truth(squares):
    rows = [f"{name},{name.split('/')[0]},10,10,40,40" for name in images_below(squares)]
    path = squares.parent / "truth.csv"
    path.write_text("\n".join(["image_id,label,xmin,ymin,xmax,ymax", *rows]) + "\n")
    return path


def images_below(root):
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*"))


def arguments(squares, truth, output):
    options = ("--epochs", EPOCHS, "--batch-size", 8, "--truth", truth, "--seed", 7)
    return ["finetune", squares, *NETWORK, *options, "--output", output, "--json"]


@pytest.fixture(scope="module")
def trained(squares, truth):
    output = squares.parent / "package"
    return output, camworker(*arguments(squares, truth, output))


@pytest.mark.slow
def test_a_package_from_labels(trained, squares):
    output, done = trained
    assert done.code == 0, done.err
    result = done.json
    assert result["classes"] == ["blue", "red"]
    assert (result["images"], result["held_back"], result["epochs"]) == (17, 4, EPOCHS)
    assert [epoch["epoch"] for epoch in result["history"]] == [1, 2, 3]
    assert all(epoch["unreadable"] == 1 for epoch in result["history"])
    assert all(0 <= epoch["gt_known_localization_accuracy"] <= 1 for epoch in result["history"])
    best = min(result["history"], key=lambda epoch: epoch["validation_loss"])
    assert result["best_epoch"] == best["epoch"]
    for n in range(1, EPOCHS + 1):
        assert f"epoch {n}: loss" in done.err
    package = load(str(output))
    assert package.fingerprint == result["fingerprint"]
    assert package.foreground is result["foreground"] is None  # random weights have no head to keep
    assert (package.name, package.scoring, package.classes.names) == (
        "timm:tinynet_e",
        "softmax",
        ("blue", "red"),
    )
    assert package.preprocessing.input_size == 128
    assert package.provenance["seed"] == 7
    assert package.provenance["epoch"] == result["best_epoch"]
    page = (output / "training.html").read_text()
    assert "<polyline" in page
    assert "Training of timm:tinynet_e" in page


@pytest.mark.slow
def test_held_back_images_can_be_localized(trained, squares, tmp_path):
    output, _ = trained
    held = pq.read_table(output / "held_back.parquet").to_pylist()
    assert sorted(row["label"] for row in held) == [["blue"], ["blue"], ["red"], ["red"]]
    out = tmp_path / "out"
    manifest = output / "held_back.parquet"
    options = ["--output", out, "--weights", output, "--local-root", squares, "--json"]
    done = camworker("localize", manifest, *options)
    assert done.code == 0, done.err
    assert done.json["processed"] == 4
    rows = latest(str(out)).to_pylist()
    names = {row["image_id"]: [target["label"] for target in row["targets"]] for row in rows}
    assert names == {row["image_id"]: [int(row["label"] == ["red"])] for row in held}


@pytest.mark.slow
def test_a_killed_and_resumed_run_gives_the_same_package(trained, squares, truth):
    _, uninterrupted = trained
    output = squares.parent / "resumed"
    process = start(*arguments(squares, truth, output))
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    for line in process.stderr:
        if line.startswith("epoch 1:"):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    watchdog.cancel()
    assert not (output / "network.json").exists()
    again = camworker(*arguments(squares, truth, output))
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "--resume" in again.err
    other = camworker(*arguments(squares, truth, output), "--resume", "--lr-head", "1")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert re.search(r"lr_head was \S+, not 1\.0", other.err)
    resumed = camworker(*arguments(squares, truth, output), "--resume")
    assert resumed.code == 0, resumed.err
    assert resumed.json["fingerprint"] == uninterrupted.json["fingerprint"]
    assert resumed.json["epochs"] == EPOCHS


@pytest.mark.slow
def test_several_labels_from_parquet_on_two_workers(squares, tmp_path):
    names = [name for name in images_below(squares) if name.endswith(".png")]
    table = pa.table(
        {
            "image_id": names,
            "image": [(squares / name).read_bytes() for name in names],
            "label": [[name.split("/")[0], "square"] for name in names],
        }
    )
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=6)
    options = ("--multi-label", "--epochs", 1, "--batch-size", 4, "--workers", 2, "--json")
    done = camworker(
        "finetune", tmp_path / "images.parquet", *NETWORK, *options, "--output", tmp_path / "package"
    )
    assert done.code == 0, done.err
    assert done.json["classes"] == ["blue", "red", "square"]
    package = load(str(tmp_path / "package"))
    assert package.scoring == "sigmoid"
    assert json.loads((tmp_path / "package/network.json").read_text())["provenance"]["multi_label"] is True
    assert "uri" not in pq.read_schema(tmp_path / "package/held_back.parquet").names


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--network", "timm:tinynet_e"], "--init published"),
        (["--network", "timm:lcnet_050", "--init", "random"], "refused"),
        (["--init", "random", "--backbone-weights", "weights.pth"], "not allowed with argument --init"),
        (["--network", "nin", "--backbone-weights", "weights.pth"], "weights cannot be read"),
        (["--resume"], "no training to resume"),
        (["--class-names", "nowhere.txt"], "class names cannot be read"),
    ],
)
def test_refusals_are_one_line(squares, tmp_path, options, reason):
    done = camworker_here("finetune", squares, "--output", tmp_path / "package", *options)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert reason in done.err
    assert not list(tmp_path.iterdir())
