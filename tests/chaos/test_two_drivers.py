"""Two drivers on one output, several times: one completes it, and the other stops or adopts its parts."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from chaos.incidents import Incident, in_processes
from chaos.scene import SHARDS, Scene, assert_whole, rows_of
from support.cli_runner import camworker, start
from support.outputs import parts_of

pytest_plugins = ["chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]

# Few images are enough because the start is what races. One repetition takes a minute on two cores.
TIMES = int(os.environ.get("CHAOS_TIMES", "5"))
FEW, SHARD = 60, 10


@pytest.mark.timeout(240 + 60 * TIMES)
def test_one_completes_and_the_other_stops(scene: Scene, tmp_path: Path) -> None:
    codes = []
    for repetition in range(TIMES):
        out = tmp_path / f"out{repetition}"
        command = scene.arguments(out, "--limit", str(FEW), "--shard-size", str(SHARD), "--workers", "1")
        first = start(*command)
        time.sleep(repetition % 4)  # At once, or while the first one starts, plans or works.
        second = start(*command)
        ends = [(process.communicate(timeout=240)[1], process.returncode) for process in (first, second)]
        codes.append(sorted(code for _, code in ends))
        assert codes[-1] in ([0, 4], [0, 0]), ends
        rows = rows_of(out)
        assert (
            rows["image_id"].to_pylist() == sorted(path.name for path in Path(scene.folder).iterdir())[:FEW]
        )
        assert rows["generation"].unique().to_pylist() == [1]
        assert sorted(parts_of(out)) == [f"part-0001-{n:06d}.parquet" for n in range(FEW // SHARD)]
        assert camworker("verify", out).code == 0
    print(codes)


def test_without_a_lease_both_complete_and_no_part_is_duplicated(
    scene: Scene, undisturbed: pa.Table, tmp_path: Path
) -> None:
    """The lease saves work but is not a lock: the loser of a race adopts the part of the winner."""
    out = tmp_path / "out"
    blind = Incident(
        "camworker.ledger.lease", "LeaseRecord.holds", tmp_path / "lease ignored", action="return False"
    )
    command, environment = scene.arguments(out, "--workers", "1"), in_processes(blind)
    both = [start(*command, environment=environment) for _ in range(2)]
    ends = [(process.communicate(timeout=600), process.returncode) for process in both]
    assert [code for _, code in ends] == [0, 0], ends
    assert blind.happened
    assert sorted(parts_of(out)) == [f"part-0001-{n:06d}.parquet" for n in range(SHARDS)]
    assert camworker("verify", out).code == 0
    assert_whole(out, undisturbed)
