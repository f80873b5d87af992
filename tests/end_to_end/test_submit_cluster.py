"""submit to a cluster of three nodes through the Jobs API, with all data in an S3 server."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_actors

from camworker.dataset import latest
from camworker.storage.uris import open_store
from support.cli_runner import Finished, camworker, photographs, start
from support.paths import ROOT
from support.ray_cluster import RunningCluster, ray_cluster
from support.seaweedfs import BUCKET, Server

pytest_plugins = ["support.s3_fixtures"]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

IMAGES = 48
INPUT = f"s3://{BUCKET}/in"
BROKEN = f"s3://{BUCKET}/broken"
FIXED = ("--precision", "float32", "--batch-size", "2", "--json")
# About two seconds per shard: long enough to be stopped, short enough to be finished in a drain.
SLOW_IMAGES = 24
SLOW = (
    *("--limit", str(SLOW_IMAGES), "--shard-size", "2"),
    *("--views", "ten-crop", "--input-size", "448", "--output-stride", "16", *FIXED),
)
VERSION = "0.0.clone"
SECONDS = 240


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources with another version than the one that is installed on the nodes."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("camworker", "jobs"):
        shutil.copytree(ROOT / name, folder / name)
    init = folder / "camworker/__init__.py"
    text, count = re.subn(r'__version__ = ".*"', f'__version__ = "{VERSION}"', init.read_text())
    assert count == 1
    init.write_text(text)
    return folder


@pytest.fixture(scope="module")
def cluster(in_s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    photos = photographs(tmp_path_factory.mktemp("cluster") / "in", IMAGES)
    store = open_store(INPUT)
    for path in photos.iterdir():
        store.create(path.name, path.read_bytes())
    open_store(BROKEN).create("0.jpg", b"no photograph")
    with ray_cluster(in_s3.environment) as running:
        yield running


@pytest.fixture(scope="module")
def client(cluster: RunningCluster) -> JobSubmissionClient:
    return JobSubmissionClient(cluster.url)


class Submit:
    """Runs submit with a clone, or without one to run what is installed on the nodes."""

    def __init__(self, cluster: RunningCluster, clone: Path | None) -> None:
        self._fixed = ("submit", "--address", cluster.url)
        if clone is not None:
            self._fixed += ("--working-dir", str(clone))

    def __call__(self, *arguments: str) -> Finished:
        return camworker(*self._fixed, *arguments)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return start(*self._fixed, *arguments)


@pytest.fixture(scope="module")
def submit(cluster: RunningCluster, clone: Path) -> Submit:
    return Submit(cluster, clone)


@pytest.fixture(scope="module")
def first(submit: Submit) -> Finished:
    return submit("--", *localize("first", *FIXED))


def localize(out: str, *more: str, source: str = INPUT) -> tuple[str, ...]:
    return ("localize", source, "--output", f"s3://{BUCKET}/{out}", *more)


def test_the_command_runs_on_the_cluster(first: Finished) -> None:
    assert first.code == 0, first.err + first.out
    # The output of the job is that of submit; its last line is the JSON of the inner command.
    assert first.json["ok"] == IMAGES
    assert first.json["output"] == f"s3://{BUCKET}/first"
    submitted, ended = [line for line in first.err.splitlines() if line.startswith("camworker-")]
    assert re.fullmatch("camworker-localize-[0-9a-f]{12} is submitted", submitted)
    assert ended.endswith(" SUCCEEDED, exit code 0")
    rows = latest(f"s3://{BUCKET}/first")
    assert rows["status"].to_pylist() == ["ok"] * IMAGES


def test_the_workers_ran_the_clone_on_the_other_nodes(first: Finished, cluster: RunningCluster) -> None:
    actors = list_actors(address=cluster.url, detail=True)
    assert {actor.node_id for actor in actors if actor.class_name == "WorkerProcess"} == set(cluster.nodes)
    assert {actor.node_id for actor in actors if actor.class_name == "JobSupervisor"} == {cluster.head}
    (run,) = _json_below("first", r"run-0001\.json$")
    assert run["versions"]["camworker"] == VERSION


def test_an_ended_command_is_submitted_again_under_the_next_name(first: Finished, submit: Submit) -> None:
    again = submit("--json", "--", *localize("first", *FIXED))
    assert again.code == 0
    result = again.json
    assert re.fullmatch("camworker-localize-[0-9a-f]{12}-2", result.pop("submission_id"))
    assert result == {"status": "SUCCEEDED", "exit_code": 0, "adopted": False}
    result = _result(again.err)
    assert (result["processed"], result["skipped"]) == (0, IMAGES)


def test_submit_exits_with_the_code_of_the_command(cluster: RunningCluster) -> None:
    """This holds for the installed version too."""
    done = Submit(cluster, None)("--", *localize("none", source=f"s3://{BUCKET}/empty"))
    assert done.code == 2
    assert f"camworker localize: s3://{BUCKET}/empty" in done.out
    assert done.err.splitlines()[-1].endswith(" FAILED, exit code 2")


def test_the_driver_can_leave_the_head(
    submit: Submit, client: JobSubmissionClient, cluster: RunningCluster
) -> None:
    """The driver reserves a core, so the only worker that fits is on the other node."""
    done = submit(
        "--driver-cpus", "1", "--json", "--", *localize("failed", "--max-error-rate", "0", source=BROKEN)
    )
    assert done.code == 3, done.err
    assert done.json["exit_code"] == 3
    assert client.get_job_info(done.json["submission_id"]).driver_node_id in cluster.nodes


def test_an_active_job_is_adopted_and_stopped_and_its_command_resumes(
    submit: Submit, client: JobSubmissionClient
) -> None:
    command = ("--", *localize("slow", *SLOW))
    followers = [submit.start("--json", *command) for _ in range(3)]
    _wait(lambda: _parts("slow"), followers)
    # A follower that leaves does not stop the job.
    leaving = followers.pop()
    leaving.send_signal(signal.SIGINT)
    _, last_words = leaving.communicate(timeout=SECONDS)
    assert leaving.returncode == 3
    assert " keeps running. Run the same command to follow it again" in last_words.splitlines()[-1]

    before = _parts("slow")
    stop_requested = time.monotonic()
    stopped = submit("--json", "--cancel", *command)
    print(f"stopped within {time.monotonic() - stop_requested:.1f} s")
    assert stopped.code == 0, stopped.err
    assert stopped.json["status"] == "STOPPED"
    ended = [follower.communicate(timeout=SECONDS) for follower in followers]
    assert [follower.returncode for follower in followers] == [3, 3]
    results = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    # All of them started at the same time; one of them submitted the job.
    assert sorted([r["adopted"] for r in results] + ["is already running" in last_words]) == [
        False,
        True,
        True,
    ]
    assert {r["submission_id"] for r in results} == {stopped.json["submission_id"]}

    # The driver drained: it reports every part, and there are more than when the stop was requested.
    _, log = ended[0]
    assert "stopped: SIGTERM; run the same command again to resume" in log
    result = _result(log)
    parts = len(_parts("slow"))
    assert len(before) < result["parts"] == parts < SLOW_IMAGES / 2
    name = stopped.json["submission_id"]
    assert f"{name} is not running" in submit("--cancel", name).err

    # The lease of the stopped run was released; otherwise this would exit with 4.
    resumed = submit("--json", *command)
    assert resumed.code == 0, resumed.err
    assert resumed.json["submission_id"] == f"{name}-2"
    result = _result(resumed.err)
    assert (result["processed"], result["skipped"]) == (SLOW_IMAGES - 2 * parts, 2 * parts)
    assert latest(f"s3://{BUCKET}/slow")["status"].to_pylist() == ["ok"] * SLOW_IMAGES


def test_a_client_with_a_wrong_token_is_refused(cluster: RunningCluster) -> None:
    stranger = {"RAY_AUTH_TOKEN": "1" * 64}
    done = camworker("submit", "--address", cluster.url, "--", *localize("first"), environment=stranger)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert f"the cluster at {cluster.url} refuses" in line


def _result(log: str) -> dict:
    """Return the JSON result of localize among the lines of its log, which are JSON too."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (result,) = [line for line in lines if "processed" in line]
    return result


def _parts(out: str) -> list[str]:
    keys = (entry.key for entry in open_store(f"s3://{BUCKET}/{out}").list())
    return [key for key in keys if key.endswith(".parquet") and "predictions/" in key]


def _json_below(out: str, pattern: str) -> list[dict]:
    store = open_store(f"s3://{BUCKET}/{out}")
    return [json.loads(store.read(entry.key)) for entry in store.list() if re.search(pattern, entry.key)]


def _wait(until, processes: "list[subprocess.Popen[str]]") -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
