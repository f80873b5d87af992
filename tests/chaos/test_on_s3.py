"""Runs on a real S3 server, also behind a proxy with faults, give the same rows as runs on local files."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from camworker.storage.uris import open_store
from chaos.faulty_proxy import READ_FAULTS, WRITE_FAULTS, FaultyProxy, faulty_proxy
from chaos.scene import COUNT, SHARDS, STATUSES, Scene, assert_whole, rows_of
from support.cli_runner import camworker
from support.outputs import assert_same_rows
from support.seaweedfs import BUCKET, Server

pytest_plugins = ["support.s3_fixtures", "chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]

# Files that are not images; with them a listing has a second page.
NOTES = 30


@pytest.fixture(scope="module")
def remote(scene: Scene, in_s3: Server) -> Scene:
    """The scene, copied to S3."""
    store = open_store(f"s3://{BUCKET}/scene")
    files = {f"in/{path.name}": path.read_bytes() for path in Path(scene.folder).iterdir()}
    files |= {
        f"package/{path.name}": path.read_bytes()
        for path in Path(scene.package).glob("*.*")
        if path.is_file()
    }
    files |= {f"in/{number:04d}.txt": b"a note" for number in range(NOTES)}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(store.create, files.keys(), files.values()))
    return Scene(f"s3://{BUCKET}/scene/in", f"s3://{BUCKET}/scene/package")


@pytest.fixture
def proxy(in_s3: Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(in_s3.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
def truth(undisturbed: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """True boxes: a quarter of each image that can be decoded."""
    path = tmp_path_factory.mktemp("truth") / "truth.csv"
    rows = undisturbed.select(["image_id", "status", "width", "height", "labels"]).to_pylist()
    lines = [
        f"{r['image_id']},{r['labels'][0]},0,0,{r['width'] // 2},{r['height']}" for r in rows if r["labels"]
    ]
    path.write_text("\n".join(["image_id,label,xmin,ymin,xmax,ymax", *lines, ""]))
    return path


def test_rows_and_metrics_equal_those_of_local_files(
    scene: Scene, remote: Scene, in_s3: Server, undisturbed: pa.Table, truth: Path, tmp_path: Path
) -> None:
    out = f"s3://{BUCKET}/plain"
    done = remote.localize(out, environment=in_s3.environment)
    assert (done.code, done.json["parts"]) == (0, SHARDS), done.err
    assert_whole(out, undisturbed)
    assert scene.localize(tmp_path / "out").code == 0
    open_store(f"s3://{BUCKET}").create("truth.csv", truth.read_bytes())
    how = ("--truth-classes", "index", "--json")
    remote_summary = camworker(
        *("summarize", out, "--truth", f"s3://{BUCKET}/truth.csv", *how), environment=in_s3.environment
    )
    local_summary = camworker("summarize", tmp_path / "out", "--truth", truth, *how)
    assert (remote_summary.code, local_summary.code) == (0, 0), (remote_summary.err, local_summary.err)
    assert remote_summary.json["images_with_truth"] == STATUSES["ok"]
    assert remote_summary.json == local_summary.json


def test_a_run_with_every_kind_of_fault(
    remote: Scene, in_s3: Server, proxy: FaultyProxy, undisturbed: pa.Table
) -> None:
    out = f"s3://{BUCKET}/troubled"
    environment = {**in_s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
    done = remote.localize(out, environment=environment)
    print(proxy.faults, proxy.reads, proxy.writes)
    assert proxy.faults.keys() >= {*READ_FAULTS, *WRITE_FAULTS, "second page"}
    # A lost answer is neither taken for another writer's part nor for a failure.
    assert (done.code, done.json["processed"], done.json["parts"]) == (0, COUNT, SHARDS), done.err
    assert "shard" not in done.err.partition("shards")[2]
    assert_whole(out, undisturbed)
    assert camworker("verify", out, environment=in_s3.environment).code == 0


def test_a_run_resumes_after_the_store_was_unavailable(
    remote: Scene, in_s3: Server, proxy: FaultyProxy, undisturbed: pa.Table
) -> None:
    out = f"s3://{BUCKET}/gone for a while"
    environment = {**in_s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
    parts = open_store(out)

    def committed() -> dict[str, str]:
        return {entry.key: entry.identity for entry in parts.list("predictions")}

    ended = threading.Event()

    def go_down() -> None:
        while len(committed()) < SHARDS // 4 and not ended.wait(0.05):
            pass
        proxy.down = True

    thread = threading.Thread(target=go_down)
    thread.start()
    stopped = remote.localize(out, environment=environment)
    ended.set()
    thread.join()
    assert stopped.code != 0
    assert stopped.err.splitlines()[-1].isprintable()
    before = committed()
    assert SHARDS // 4 <= len(before) < SHARDS

    proxy.down = False
    done = remote.localize(out, environment=environment)
    assert done.code == 0, done.err
    assert {key: committed()[key] for key in before} == before
    rows = rows_of(out)
    # Images that could not be read are planned again automatically.
    assert_same_rows(rows, undisturbed)
    assert "read_error" not in done.json["failed"]
