"""A script: a cluster of a head without cores and two nodes; when it reads "kill", it ends one that works."""

import os
import signal
import subprocess
import sys
import time

from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            while (working := next(filter(runs_a_shard, raylets), None)) is None:
                time.sleep(0.01)
            # As when a machine goes. Of a raylet alone its workers would hear late, and go on for a while.
            for pid in (working, *children(working)):
                os.kill(pid, signal.SIGKILL)
            print("killed", flush=True)
    cluster.shutdown()


def runs_a_shard(raylet: int) -> bool:
    """Whether a worker of this raylet runs a shard, and has not only started: Ray names processes so."""
    return any(name.startswith("ray::WorkerProcess.run") for name in children(raylet).values())


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started, with what they are called."""
    command = ["ps", "--ppid", str(pid), "-o", "pid=,args="]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {int(line.split(None, 1)[0]): line.split(None, 1)[1] for line in told.splitlines()}


if __name__ == "__main__":
    main()
