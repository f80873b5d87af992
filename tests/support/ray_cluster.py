"""A Ray cluster of several nodes on this machine, with the Jobs API, in a process of its own.

As a script it is that process: it starts the nodes, prints their addresses as JSON, and stops them when its
standard input ends.
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
    """The URL of a cluster's dashboard, the id of its head node, and the ids of its other nodes."""

    url: str
    head: str
    nodes: tuple[str, ...]


@contextmanager
def ray_cluster(environment: dict[str, str]) -> Iterator[RunningCluster]:
    """Run a head node without cores and two nodes with one core each.

    Clients need the token of the tests.

    Args:
        environment: Environment variables for the processes of the cluster.
    """
    # A job's "python" has to be this interpreter, not another one in the PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The folder holds sockets, and the path of a socket has at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    process = subprocess.Popen(
        [sys.executable, __file__],
        env={
            **ENVIRONMENT,
            "PATH": path,
            # Ray writes the address of the cluster to this folder, where its jobs look for it. A folder of
            # its own leaves other clusters alone.
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
        cluster = json.loads(started)
        yield RunningCluster(cluster["url"], cluster["head"], tuple(cluster["nodes"]))
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
        # Ray replaces 127.0.0.1 by the external address of the machine, but not other loopback addresses.
        "node_ip_address": "127.0.0.2",
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{n}") for n in (3, 4)]
    addresses = {
        "url": f"http://{cluster.webui_url}",
        "head": cluster.head_node.node_id,
        "nodes": [node.node_id for node in nodes],
    }
    print(json.dumps(addresses), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _main()
