"""localize and the commands that read its output, with input, weights and output in S3."""

import json

import numpy as np
import pytest

from camworker.dataset import latest
from camworker.networks.package import load, save
from camworker.storage.uris import open_store
from jobs.cli import main
from support.cli_runner import camworker, photographs
from support.fake_s3 import serve_fake_s3
from support.seaweedfs import BUCKET, found_by_boto3

pytest_plugins = ["support.s3_fixtures"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

IMAGES = 10
FIXED = ("--precision", "float32", "--shard-size", "4", "--workers", "1", "--json")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Localize photographs and a text file, with labels and ground truth in the same folder."""
    home = tmp_path_factory.mktemp("local")
    photographs(home / "in", IMAGES)
    (home / "in/deep").mkdir()
    (home / "in/deep/no photograph #1?%41.jpg").write_text("text")
    ids = [f"{n:04d}.jpg" for n in range(IMAGES)]
    (home / "labels.csv").write_text("image_id,label\n" + "".join(f"{i},{n}\n" for n, i in enumerate(ids)))
    rows = "".join(f"{i},{n},0,0,{100 + n},200\n" for n, i in enumerate(ids))
    (home / "truth.csv").write_text(f"image_id,label,xmin,ymin,xmax,ymax\n{rows}")
    save(load(), home / "package")
    done = camworker(*arguments(home))
    assert done.code == 0, done.err
    return home, done


@pytest.fixture(scope="module")
def remote(local, in_s3):
    """Localize the same files in S3."""
    home, _ = local
    root = f"s3://{BUCKET}/a prefix/é #?%41"
    store = open_store(root)
    for path in home.rglob("*"):
        name = path.relative_to(home).as_posix()
        if path.is_file() and not name.startswith("out/"):
            store.create(name, path.read_bytes())
    done = camworker(*arguments(root), environment=in_s3.environment)
    assert done.code == 0, done.err
    return root, done


def arguments(home):
    labels = ("--image-labels", f"{home}/labels.csv", "--weights", f"{home}/package")
    return ("localize", f"{home}/in", "--output", f"{home}/out", *labels, *FIXED)


@pytest.fixture
def command(capsys):
    """Return a function that runs a command in this process and returns its JSON result."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        assert code == 0, streams.err
        return json.loads(streams.out.splitlines()[-1])

    return run


def test_rows_equal_those_of_local_files(local, remote):
    (home, local_run), (root, s3_run) = local, remote
    for name in ("recipe", "generation", "planned", "ok", "failed", "parts"):
        assert s3_run.json[name] == local_run.json[name]
    assert s3_run.json["output"] == f"{root}/out"
    assert s3_run.json["failed"] == {"unsupported": 1}
    local_rows, s3_rows = (latest(f"{folder}/out").sort_by("image_id") for folder in (home, root))
    for name in ("image_id", "status", "width", "height", "labels", "names"):
        assert s3_rows[name].equals(local_rows[name]), name
    assert s3_rows["uri"].to_pylist() == [f"{root}/in/{i}" for i in s3_rows["image_id"].to_pylist()]
    for row, other in zip(local_rows.to_pylist(), s3_rows.to_pylist(), strict=True):
        np.testing.assert_allclose(other["scores"], row["scores"], rtol=1e-4)
        for name in ("boxes", "targets"):
            assert [b["label"] for b in other[name]] == [b["label"] for b in row[name]]
    # Parts and records have the same names; S3 has the probe in addition.
    names = {entry.key.partition("=")[2].partition("/")[2] for entry in open_store(f"{root}/out").list()}
    parts = {f"part-0001-{n:06d}.parquet" for n in range(3)}
    assert {"recipe.json", "plan-0001.json", "plan-0001/0.parquet", "run-0001.json", *parts} <= names


def test_metrics_equal_those_of_local_files(local, remote, command):
    local_summary, s3_summary = (
        command("summarize", f"{home}/out", "--truth", f"{home}/truth.csv", "--json")
        for home in (local[0], remote[0])
    )
    assert local_summary["images"] == IMAGES + 1
    different = {name for name in local_summary if local_summary[name] != s3_summary[name]}
    assert different <= {"output", "truth", "seconds"}


def test_a_second_run_has_nothing_to_do(remote, command):
    root, _ = remote
    before = {entry.key for entry in open_store(f"{root}/out").list()}
    done = command(*arguments(root))
    assert (done["processed"], done["skipped"]) == (0, IMAGES + 1)
    assert {entry.key for entry in open_store(f"{root}/out").list()} == before


def test_status_preview_and_export_read_from_s3(remote, command, tmp_path):
    out = f"{remote[0]}/out"
    assert command("status", out, "--json")["complete"]
    assert command("preview", out, "--to", tmp_path / "sheet", "--json")["shown"] == IMAGES
    to = tmp_path / "boxes.json"
    assert command("export", out, "--format", "coco", "--to", to, "--json")["images"] == IMAGES


def test_a_store_without_conditional_writes_needs_single_writer(local, capsys, monkeypatch):
    home, _ = local
    with serve_fake_s3() as store, found_by_boto3(store.environment):
        store.conditions = False
        command = ("localize", f"{home}/in", "--output", "s3://bucket/out", "--limit", "2", *FIXED)
        assert main(list(command)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "s3://bucket/out replaces" in line
        assert "--single-writer" in line
        assert list(store.objects) == ["bucket/out/ledger/probe"]
        # With the option the work starts, which does not depend on the store.
        monkeypatch.setattr("jobs.localize.command._complete_all", lambda *_: True)
        assert main([*command, "--single-writer"]) == 0
