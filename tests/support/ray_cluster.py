"""A Ray cluster of several nodes on this machine, with the Jobs API, in a process of its own.

As a script it is that process: starts the nodes, says in JSON where they are, ends them with its input.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.cli_runner import ENVIRONMENT


@dataclass(frozen=True)
class RunningCluster:
    """A cluster: its dashboard's address, the id of its head, and those of its other nodes."""

    url: str
    head: str
    nodes: tuple[str, ...]


@contextmanager
def ray_cluster(environment: dict[str, str]) -> Iterator[RunningCluster]:
    """A head without cores and two nodes with one core each; environment: what their processes see.

    Whoever has the token of the tests may enter it.
    """
    # A job's "python" is ours, and no other that a shell would find.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Sockets lie in there, and a socket's path is at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    process = subprocess.Popen(
        [sys.executable, __file__],
        env={
            **ENVIRONMENT,
            "PATH": path,
            # In there Ray notes the cluster's address: a job looks for it, and other clusters keep theirs.
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            **environment,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        started = process.stdout.readline()
        assert started, f"the cluster did not start: exit code {process.wait()}"
        found = json.loads(started)
        yield RunningCluster(found["url"], found["head"], tuple(found["nodes"]))
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _main() -> None:
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": 0,
        "dashboard_agent_listen_port": 0,
        # Ray takes 127.0.0.1 for the machine's own address; the rest of the loopback it leaves as it is.
        "node_ip_address": "127.0.0.2",
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{n}") for n in (3, 4)]
    found = {
        "url": f"http://{cluster.webui_url}",
        "head": cluster.head_node.node_id,
        "nodes": [node.node_id for node in nodes],
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _main()
