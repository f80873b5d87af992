"""localize and the commands that read its output, with the default network on a local Ray."""

import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.dataset import latest
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.networks.package import load
from camworker.storage.uris import open_store
from support.cli_runner import Finished, camworker, photographs

pytestmark = pytest.mark.ray

GOOD, BAD = 24, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of photographs and of files that only look like images."""
    folder = photographs(tmp_path_factory.mktemp("localize") / "in", GOOD)
    whole = (folder / "0000.jpg").read_bytes()
    (folder / "short.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "sub").mkdir()
    (folder / "sub" / "odd name #1 50%?.jpg").write_bytes(b"<svg/>")
    (folder / "gone.jpg").symlink_to("0001.jpg")  # a link counts as a file
    (folder / "long.png").write_bytes(_png_header(60000, 60000))
    (folder / "notes.txt").write_text("not listed: its name is not that of an image")
    (folder / "labels.csv").write_text("image_id,label\n0000.jpg,tabby\n0001.jpg,504\n0001.jpg,espresso\n")
    return folder


@pytest.fixture(scope="module")
def first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Return the output of a first run and the finished command."""
    out = tmp_path_factory.mktemp("out") / "out"
    return out, localize(folder, out, "--image-labels", folder / "labels.csv")


def localize(source: Path, out: Path, *options: str | Path) -> Finished:
    fixed = ("--precision", "float32", "--shard-size", "8", "--json")
    return camworker("localize", source, "--output", out, *fixed, *options)


def test_rows_are_measured_against_truth(folder: Path, first: tuple[Path, Finished], tmp_path: Path) -> None:
    out, _ = first
    truth = tmp_path / "truth.csv"
    truth.write_text(
        "image_id,label,xmin,ymin,xmax,ymax\n0000.jpg,tabby,0,0,5,5\n0001.jpg,espresso,0,0,4,4\n"
    )
    done = localize(folder, out, "--image-labels", folder / "labels.csv", "--truth", truth)
    assert done.json["processed"] == 0
    assert done.json["summary"]["instances_with_boxes"] == 2
    assert done.json["summary"]["gt_known_localization_accuracy"] is not None


def test_every_planned_image_has_one_row(folder: Path, first: tuple[Path, Finished]) -> None:
    out, done = first
    assert done.code == 0, done.err
    rows = latest(str(out))
    listed = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.suffix in (".jpg", ".png"))
    assert sorted(rows["image_id"].to_pylist()) == listed
    statuses = Counter(rows["status"].to_pylist())
    assert statuses == {"ok": GOOD + 1, "decode_error": 2, "unsupported": 2, "too_large": 1}
    failed = rows.filter(pa.compute.not_equal(rows["status"], "ok"))
    assert failed["error"].null_count == 0


def test_json_counts_the_processed_images(first: tuple[Path, Finished]) -> None:
    out, done = first
    summary = done.json
    assert summary["planned"] == summary["processed"] == GOOD + 6
    assert (summary["ok"], summary["skipped"], summary["generation"]) == (GOOD + 1, 0, 1)
    assert summary["failed"] == {"decode_error": 2, "unsupported": 2, "too_large": 1}
    assert summary["parts"] == len(list(out.glob("predictions/*/part-0001-*.parquet"))) == 4
    assert summary["images_per_second"] > 0
    assert summary["output"] == str(out)
    assert len(done.out.splitlines()) == 1


def test_without_a_terminal_progress_is_plain_lines(first: tuple[Path, Finished]) -> None:
    _, done = first
    assert "\x1b" not in done.err
    assert "\r" not in done.err
    assert len(done.err.splitlines()) <= 4


def test_known_labels_are_written_next_to_the_top5(first: tuple[Path, Finished]) -> None:
    rows = {row["image_id"]: row for row in latest(str(first[0])).to_pylist()}
    assert [target["label"] for target in rows["0000.jpg"]["targets"]] == [281]
    assert [target["label"] for target in rows["0001.jpg"]["targets"]] == [504, 967]
    assert rows["0002.jpg"]["targets"] == []
    assert rows["0000.jpg"]["names"][0] in ("Egyptian cat", "tabby", "tiger cat")


def test_a_second_run_has_nothing_to_do(folder: Path, first: tuple[Path, Finished]) -> None:
    out, _ = first
    before = _files(out)
    again = localize(folder, out, "--image-labels", folder / "labels.csv")
    assert again.code == 0
    assert (again.json["processed"], again.json["planned"], again.json["parts"]) == (0, 0, 0)
    assert again.json["skipped"] == GOOD + 6
    assert _files(out) == before


def test_only_new_changed_and_relabelled_images_are_localized_again(
    folder: Path, first: tuple[Path, Finished], tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(folder, source, symlinks=True)
    shutil.copytree(first[0], out)
    shutil.copy(source / "0003.jpg", source / "new.jpg")
    (source / "0004.jpg").write_bytes((source / "0005.jpg").read_bytes())
    (source / "labels.csv").write_text("image_id,label\n0000.jpg,tabby\n0001.jpg,504\n0002.jpg,0\n")
    done = localize(source, out, "--image-labels", source / "labels.csv")
    assert done.code == 0, done.err
    again = done.json
    assert (again["generation"], again["processed"], again["skipped"]) == (2, 4, GOOD + 3)
    rows = latest(str(out))
    newer = rows.filter(pa.compute.equal(rows["generation"], 2))
    assert sorted(newer["image_id"].to_pylist()) == ["0001.jpg", "0002.jpg", "0004.jpg", "new.jpg"]
    assert rows.num_rows == len(set(rows["image_id"].to_pylist())) == GOOD + 7
    status = camworker("status", out, "--json").json
    assert status["complete"]
    assert [g["planned"] for g in status["recipes"][0]["generations"]] == [GOOD + 6, 4]


@pytest.mark.slow
def test_images_in_parquet_give_the_same_rows_as_files(
    folder: Path, first: tuple[Path, Finished], tmp_path: Path
) -> None:
    names = [f"{n:04d}.jpg" for n in range(10)] + ["text.jpg"]
    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    table = pa.table({"id": names, "image": images, "label": ["tabby"] * len(names)})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=4)
    done = localize(tmp_path / "data.parquet", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.json["failed"] == {"unsupported": 1}
    rows = latest(str(tmp_path / "out")).sort_by("image_id")
    assert rows["source_row"].to_pylist() == list(range(len(names)))
    files = latest(str(first[0]))
    files = files.filter(pa.compute.is_in(files["image_id"], pa.array(names))).sort_by("image_id")
    assert rows["labels"].to_pylist() == files["labels"].to_pylist()
    # The batches differ, so sums are equal up to the precision of float32.
    ours, theirs = (np.concatenate(t["scores"].to_pylist()) for t in (rows, files))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
def test_sample_limit_and_dry_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = localize(folder, out, "--dry-run")
    assert dry.code == 0, dry.err
    assert not out.exists()
    summary = dry.json
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))
    assert (summary["planned"], summary["bytes"], summary["shards"]) == (GOOD + 6, size, 4)
    assert summary["seconds"] == pytest.approx((GOOD + 6) / summary["images_per_second"], abs=0.1)
    assert localize(folder, out, "--limit", "3").json["processed"] == 3
    assert sorted(latest(str(out))["image_id"].to_pylist()) == ["0000.jpg", "0001.jpg", "0002.jpg"]
    # The sample is drawn before images that are done are left out.
    assert localize(folder, out, "--limit", "4", "--sample", "4").json["processed"] == 1


@pytest.mark.slow
def test_a_replaced_photograph_is_not_shown_with_old_maps(folder: Path, tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", 2)
    assert localize(source, tmp_path / "out").code == 0
    (source / "0001.jpg").write_bytes((folder / "0002.jpg").read_bytes())
    page = camworker("preview", tmp_path / "out", "--to", tmp_path / "page", "--json").json["page"]
    text = Path(page).read_text()
    assert (
        text.count("<img ") == 1 + 5 + 1
    )  # the photograph, five maps, and the refined one of the best class
    assert "cannot be shown: the file was replaced after it was planned" in text


@pytest.mark.slow
def test_items_that_a_concurrent_run_plans_are_not_planned_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this run starts Ray, another one plans one image: it is completed and the rest is planned."""
    from camworker import dataset
    from camworker.ledger import plan
    from jobs import cli, ray_cluster

    source, out = photographs(tmp_path / "in", 5), tmp_path / "out"
    connected = ray_cluster.connected

    @contextmanager
    def slow_start(address: str | None, *, verbose: bool) -> Iterator[None]:
        with connected(address, verbose=verbose):
            recipe = recipe_of_a_dry_run
            ledger = Ledger(open_store(str(out)), recipe)
            items = open_source(str(source), load().classes).items
            plan.write_generation(ledger, 1, items.slice(2, 1), 8, ReadPolicy())
            yield

    arguments = ["localize", str(source), "--output", str(out), "--precision", "float32"]
    recipe_of_a_dry_run = camworker(*arguments, "--dry-run", "--json").json["recipe"]
    monkeypatch.setattr(ray_cluster, "connected", slow_start)
    assert cli.main(arguments) == 0
    rows = dataset.latest(str(out)).sort_by("image_id")
    assert rows["generation"].to_pylist() == [2, 2, 1, 2, 2]


@pytest.mark.slow
def test_too_many_failures_exit_with_3_and_keep_all_rows(folder: Path, tmp_path: Path) -> None:
    done = localize(folder, tmp_path / "out", "--max-error-rate", "0.1")
    assert done.code == 3
    assert "--max-error-rate" in done.err
    assert latest(str(tmp_path / "out")).num_rows == GOOD + 6


def test_preview_shows_photographs_maps_and_failures(first: tuple[Path, Finished], tmp_path: Path) -> None:
    done = camworker("preview", first[0], "--to", tmp_path, "--count", "3", "--json")
    assert done.code == 0, done.err
    page = Path(done.json["page"]).read_text()
    # Three sections of three images with a photograph, five maps and a refined one each, and two maps of each
    # known label.
    assert 9 * 7 <= page.count("<img ") <= 9 * 7 + 2 * 3
    assert "odd name #1 50%?.jpg" in page
    assert "the bytes are not an image in a supported format" in page


def _files(out: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and modification time of every file in an output."""
    paths = (Path(root) / name for root, _, names in os.walk(out) for name in names)
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def _png_header(width: int, height: int) -> bytes:
    """Return the start of a PNG of this size, with a few bytes of data."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b"\0" * 9))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
