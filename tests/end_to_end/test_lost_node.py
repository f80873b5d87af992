"""The loss of a node: its shards are run on another node without counting against their retry budgets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.cli_runner import ENVIRONMENT
from support.paths import SUPPORT


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_node_does_not_count_against_retry_budgets(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, SUPPORT / "lost_node.py", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["done"] == [0, 1]
    assert result["lost"] == 0
    assert result["warnings"] == ["a node was lost: shard 0 is run again elsewhere"]
    # Shard 0 ran twice, and not isolated the second time: its retry budget is untouched.
    assert sorted(result["runs"]) == [[0, False], [0, False], [1, False]]
