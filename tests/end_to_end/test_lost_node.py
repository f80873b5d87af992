"""A node that is lost charges no shard, and its shards are run elsewhere, as fast as before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.cli_runner import ENVIRONMENT
from support.paths import SUPPORT


@pytest.mark.ray
@pytest.mark.slow
def test_the_loss_of_a_node_charges_no_shard(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, SUPPORT / "lost_node.py", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    came_to = json.loads(done.stdout.splitlines()[-1])
    assert came_to["done"] == [0, 1]
    assert came_to["lost"] == 0
    assert came_to["warnings"] == ["a node was lost: shard 0 is run again elsewhere"]
    # Twice, and the second time not carefully: it was not charged.
    assert sorted(came_to["runs"]) == [[0, False], [0, False], [1, False]]
