"""Readers refuse what verify reports, on a local disk, in S3 and on a cluster."""

import pytest

from camworker.dataset import latest
from camworker.errors import CorruptedError
from camworker.storage.uris import open_store
from jobs import cli
from support.cli_runner import camworker, photographs
from support.damage import HOME, PARTS, flip, problems, verify
from support.seaweedfs import BUCKET

pytest_plugins = ["support.s3_fixtures", "support.damage_fixtures"]


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.csv"
    ids = [f"{n:02d}.png" for n in range(10)]
    rows = [f"{image_id},dog,1,1,9,9" for image_id in [*ids, *(f"new/{image_id}" for image_id in ids[:4])]]
    path.write_text("\n".join(["image_id,label,xmin,ymin,xmax,ymax", *rows, ""]))
    return str(path)


def test_summarize_refuses_every_damage(out, truth, capsys):
    part = out / PARTS / "part-0001-000000.parquet"
    whole = part.read_bytes()
    damages = [whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :] for offset in offsets(whole)]
    arguments = ["summarize", str(out), "--truth", truth]
    for damage in [*damages, whole[:-1], whole[: len(whole) // 2], b"", None]:
        part.unlink() if damage is None else part.write_bytes(damage)
        assert cli.main(arguments) == 5
        printed = capsys.readouterr()
        assert printed.err.startswith(f"camworker summarize: {PARTS}/{part.name} ")
        assert printed.err.endswith(": run camworker verify OUT\n")
        assert len(printed.err.splitlines()) == 1
        assert not printed.out
    part.write_bytes(whole)
    assert cli.main(arguments) == 0


def test_a_damaged_run_record_is_refused_by_readers(out):
    (out / HOME / "run-0001.json").write_bytes(b"{")
    with pytest.raises(CorruptedError, match="run record of generation 1 cannot be read: run camworker"):
        latest(str(out))


def test_in_s3(in_s3, out, truth, capsys):
    uri = f"s3://{BUCKET}/verified"
    store = open_store(uri)
    for path in (path for path in out.rglob("*.*") if path.is_file()):
        store.create(path.relative_to(out).as_posix(), path.read_bytes())
    code, content, _ = verify(uri, capsys)
    assert (code, content["parts"], content["problems"]) == (0, 4, [])
    summarize = ["summarize", uri, "--truth", truth]
    assert cli.main(summarize) == 0

    key = f"{PARTS}/part-0001-000001.parquet"
    data = bytearray(store.read(key))
    data[0] ^= 1
    in_s3.client().put_object(Bucket=BUCKET, Key=f"verified/{key}", Body=bytes(data))
    assert problems(uri, capsys).keys() == {key}
    assert cli.main(summarize) == 5
    assert capsys.readouterr().err.startswith(
        f"camworker summarize: {key} has changed since it was committed"
    )
    in_s3.client().delete_object(Bucket=BUCKET, Key=f"verified/{key}")
    assert problems(uri, capsys)[key][0] == "is missing, although its run record names it"
    assert cli.main(summarize) == 5


@pytest.mark.ray
@pytest.mark.slow
def test_what_localize_commits_and_summarize_on_a_cluster(tmp_path, capsys):
    out, truth = tmp_path / "out", tmp_path / "truth.csv"
    options = ("--precision", "float32", "--shard-size", "3", "--workers", "1")
    done = camworker("localize", photographs(tmp_path / "in", 6), "--output", out, *options)
    assert done.code == 0, done.err
    assert cli.main(["verify", str(out)]) == 0
    part = min((out / "predictions").rglob("*.parquet"))
    flip(part, 100)
    assert problems(out, capsys).keys() == {part.relative_to(out).as_posix()}
    truth.write_text("image_id,label,xmin,ymin,xmax,ymax\n0000.jpg,281,1,1,200,200\n")
    options = ("--truth", truth, "--truth-classes", "index", "--address", "local")
    done = camworker("summarize", out, *options)
    assert (done.code, done.out) == (5, "")
    assert done.err.splitlines()[-1].startswith(f"camworker summarize: {part.relative_to(out).as_posix()} ")
    assert "Traceback" not in done.err


def offsets(data):
    """Return the first and the last byte of a part and of its footer, and some in between."""
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return [0, 4, footer - 1, footer, len(data) - 9, len(data) - 1, *range(11, len(data), len(data) // 20)]
