"""SIGKILL at each step of committing and planning: committed parts stay, and the rest is completed."""

from pathlib import Path

import pyarrow as pa
import pytest

from chaos.incidents import Incident, in_processes
from chaos.scene import COUNT, SHARDS, SIZE, Scene, assert_whole
from support.outputs import parts_of

pytest_plugins = ["chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]


def test_a_worker_killed_at_each_step_of_the_commit(
    scene: Scene, undisturbed: pa.Table, tmp_path: Path
) -> None:
    """Four workers are killed, each at a later step than the one before, and the run completes."""
    out = tmp_path / "out"
    steps = (
        Incident("camworker.ledger.parts", "encode_part", tmp_path / "before it is encoded", call=2),
        Incident("camworker.ledger.parts", "encode_part", tmp_path / "before it is created", "after", call=4),
        Incident(
            "camworker.storage.local",
            "os.link",
            tmp_path / "draft without a name",
            argument="predictions/",
            call=2,
        ),
        Incident(
            *("camworker.storage.local", "LocalStore.create", tmp_path / "created, not reported", "after"),
            argument="predictions/",
            call=4,
        ),
    )
    done = scene.localize(out, "--workers", "1", environment=in_processes(*steps))
    assert all(step.happened for step in steps)
    assert done.code == 0, done.err
    assert done.err.count("ended its worker") == len(steps)
    # A part that was created before its worker could report it is not computed again.
    assert (done.json["processed"], done.json["skipped"]) == (COUNT - SIZE, SIZE)
    assert_whole(out, undisturbed)
    committed = parts_of(out)
    again = scene.localize(out)
    assert (again.code, again.json["processed"], again.json["skipped"]) == (0, 0, COUNT)
    assert parts_of(out) == committed


def test_a_driver_killed_at_each_step(scene: Scene, undisturbed: pa.Table, tmp_path: Path) -> None:
    """Each run resumes where the one before was killed, and is killed one step later."""
    out = tmp_path / "out"
    ledger = "camworker.ledger.ledger"
    steps = (
        Incident(ledger, "Ledger.write_recipe", tmp_path / "recipe, no plan", "after"),
        Incident(ledger, "Ledger.commit_plan", tmp_path / "plan's files, no plan"),
        Incident(ledger, "Ledger.commit_plan", tmp_path / "plan, no part", "after"),
        Incident(
            "jobs.driver.worker_handle", "WorkerHandle.assign", tmp_path / "some parts", call=SHARDS // 2
        ),
        Incident(ledger, "Ledger.commit_run", tmp_path / "all parts, no record"),
    )
    home = "ledger/recipe=*"
    committed: dict[str, tuple[int, int]] = {}
    for step, newest_file, least, most in zip(
        steps,
        ("recipe.json", "plan-0001/0.parquet", "plan-0001.json", "plan-0001.json", "plan-0001.json"),
        (0, 0, 0, SHARDS // 2 - 2, SHARDS),
        (0, 0, 0, SHARDS - 1, SHARDS),
        strict=True,
    ):
        killed = scene.localize(out, "--workers", "1", environment=in_processes(step))
        assert (killed.code, step.happened) == (-9, True), killed.err
        assert list(out.glob(f"{home}/{newest_file}"))
        assert not list(out.glob(f"{home}/run-*.json"))
        now = parts_of(out)
        assert {name: now[name] for name in committed} == committed
        assert least <= len(now) <= most
        committed = now
    done = scene.localize(out)
    assert done.code == 0, done.err
    assert (done.json["processed"], done.json["skipped"]) == (0, COUNT)
    assert parts_of(out) == committed
    assert_whole(out, undisturbed)
