"""Repeated runs of localize on a folder in which images are added, replaced and deleted."""

from pathlib import Path

import pytest

from camworker.dataset import latest
from support.cli_runner import Finished, camworker, photographs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COUNT = 12


def localize(source: Path, out: Path, *options: str) -> Finished:
    fixed = ("--precision", "float32", "--shard-size", "5", "--json")
    return camworker("localize", source, "--output", out, *fixed, *options)


def test_every_run_localizes_what_is_new(tmp_path: Path) -> None:
    source, out = photographs(tmp_path / "in", COUNT), tmp_path / "out"
    assert localize(source, out).json["processed"] == COUNT
    assert localize(source, out, "--remove-missing").json["processed"] == 0

    (source / "new.jpg").write_bytes((source / "0001.jpg").read_bytes())
    (source / "0002.jpg").write_bytes((source / "0003.jpg").read_bytes())
    deleted = (source / "0004.jpg").read_bytes()
    (source / "0004.jpg").unlink()
    second = localize(source, out).json
    assert (second["generation"], second["processed"], second["skipped"], second["removed"]) == (2, 2, 10, 0)
    assert generations(out)["0004.jpg"] == 1, "an absent image keeps its row without --remove-missing"

    dry = localize(source, out, "--remove-missing", "--dry-run")
    assert (dry.json["planned"], dry.json["bytes"]) == (1, 0)
    third = localize(source, out, "--remove-missing", "--max-error-rate", "0").json
    assert (third["planned"], third["processed"], third["removed"], third["skipped"]) == (1, 0, 1, COUNT)
    assert (third["ok"], third["failed"]) == (0, {})
    expected = {f"{n:04d}.jpg": 1 for n in range(COUNT)} | {"0002.jpg": 2, "new.jpg": 2}
    del expected["0004.jpg"]
    assert generations(out) == expected

    status = camworker("status", out, "--json").json
    assert status["complete"]
    assert [g["removed"] for g in status["recipes"][0]["generations"]] == [0, 0, 1]
    assert [g["failed"] for g in status["recipes"][0]["generations"]] == [{}] * 3
    assert camworker("verify", out).code == 0
    assert camworker("compact", out, "--to", tmp_path / "clean", "--json").json["rows"] == COUNT
    exported = camworker("export", out, "--format", "coco", "--to", tmp_path / "boxes.json", "--json").json
    assert (exported["images"], exported["failed"]) == (COUNT, {})

    (source / "0004.jpg").write_bytes(deleted)
    assert localize(source, out).json["processed"] == 1
    assert generations(out) == expected | {"0004.jpg": 4}


def generations(out: Path) -> dict[str, int]:
    rows = latest(str(out), columns=["image_id", "generation"])
    by_image = dict(zip(rows["image_id"].to_pylist(), rows["generation"].to_pylist(), strict=True))
    assert len(by_image) == rows.num_rows
    return by_image
