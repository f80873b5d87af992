"""localize and its readers with input, weights and output in S3: equal to local, and what is refused."""

import json

import numpy as np
import pytest

from camworker.dataset import latest
from camworker.networks import package as weights
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
    """Photographs, one that is none, labels and truth; localized."""
    home = tmp_path_factory.mktemp("local")
    photographs(home / "in", IMAGES)
    (home / "in/deep").mkdir()
    (home / "in/deep/no photograph #1?%41.jpg").write_text("text")
    ids = [f"{n:04d}.jpg" for n in range(IMAGES)]
    (home / "labels.csv").write_text("image_id,label\n" + "".join(f"{i},{n}\n" for n, i in enumerate(ids)))
    rows = "".join(f"{i},{n},0,0,{100 + n},200\n" for n, i in enumerate(ids))
    (home / "truth.csv").write_text(f"image_id,label,xmin,ymin,xmax,ymax\n{rows}")
    weights.save(weights.load(), home / "package")
    done = camworker(*arguments(home))
    assert done.code == 0, done.err
    return home, done


@pytest.fixture(scope="module")
def remote(local, in_s3):
    """The same in S3."""
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
    """Run a command that needs no Ray in this process, and give what it says by --json."""

    def run(*given):
        code = main([str(argument) for argument in given])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(said.out.splitlines()[-1])

    return run


def test_the_rows_are_those_of_local_files(local, remote):
    (home, here), (root, there) = local, remote
    for name in ("recipe", "generation", "planned", "ok", "failed", "parts"):
        assert there.json[name] == here.json[name]
    assert there.json["output"] == f"{root}/out"
    assert there.json["failed"] == {"unsupported": 1}
    mine, theirs = (latest(f"{where}/out").sort_by("image_id") for where in (home, root))
    for name in ("image_id", "status", "width", "height", "labels", "names"):
        assert theirs[name].equals(mine[name]), name
    assert theirs["uri"].to_pylist() == [f"{root}/in/{i}" for i in theirs["image_id"].to_pylist()]
    for row, other in zip(mine.to_pylist(), theirs.to_pylist(), strict=True):
        np.testing.assert_allclose(other["scores"], row["scores"], rtol=1e-4)
        for name in ("boxes", "targets"):
            assert [b["label"] for b in other[name]] == [b["label"] for b in row[name]]
    # Parts and records by the same names; the probe is all that is more.
    names = {entry.key.partition("=")[2].partition("/")[2] for entry in open_store(f"{root}/out").list()}
    parts = {f"part-0001-{n:06d}.parquet" for n in range(3)}
    assert {"recipe.json", "plan-0001.json", "plan-0001/0.parquet", "run-0001.json", *parts} <= names


def test_the_figures_are_those_of_local_files(local, remote, command):
    here, there = (
        command("summarize", f"{home}/out", "--truth", f"{home}/truth.csv", "--json")
        for home in (local[0], remote[0])
    )
    assert here["images"] == IMAGES + 1
    different = {name for name in here if here[name] != there[name]}
    assert different <= {"output", "truth", "seconds"}


def test_again_there_is_nothing_to_do(remote, command):
    root, _ = remote
    before = {entry.key for entry in open_store(f"{root}/out").list()}
    done = command(*arguments(root))
    assert (done["processed"], done["skipped"]) == (0, IMAGES + 1)
    assert {entry.key for entry in open_store(f"{root}/out").list()} == before


def test_the_other_readers(remote, command, tmp_path):
    out = f"{remote[0]}/out"
    assert command("status", out, "--json")["complete"]
    assert command("preview", out, "--to", tmp_path / "sheet", "--json")["shown"] == IMAGES
    to = tmp_path / "boxes.json"
    assert command("export", out, "--format", "coco", "--to", to, "--json")["images"] == IMAGES


def test_a_store_that_replaces_is_refused_unless_nobody_else_writes(local, capsys, monkeypatch):
    home, _ = local
    with serve_fake_s3() as store, found_by_boto3(store.environment):
        store.conditions = False
        given = ("localize", f"{home}/in", "--output", "s3://bucket/out", "--limit", "2", *FIXED)
        assert main(list(given)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "s3://bucket/out replaces" in line
        assert "--single-writer" in line
        assert list(store.objects) == ["bucket/out/ledger/probe"]
        # With the option it goes on to the work, which is the same as anywhere.
        monkeypatch.setattr("jobs.localize.command._complete_all", lambda *_: True)
        assert main([*given, "--single-writer"]) == 0
