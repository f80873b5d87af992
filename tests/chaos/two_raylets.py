"""A script that runs a cluster of two nodes and kills a busy one when it reads "kill"."""

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
            while (working := next(filter(is_running_shard, raylets), None)) is None:
                time.sleep(0.01)
            # The workers are killed too, as when a machine fails: they notice the end of a raylet only later.
            for pid in (working, *children(working)):
                os.kill(pid, signal.SIGKILL)
            print("killed", flush=True)
    cluster.shutdown()


def is_running_shard(raylet: int) -> bool:
    """Return whether a worker of this raylet runs a shard, judged by the name that Ray gives its process."""
    return any(name.startswith("ray::WorkerProcess.run") for name in children(raylet).values())


def children(pid: int) -> dict[int, str]:
    """Return the children of a process: their ids and command lines."""
    command = ["ps", "--ppid", str(pid), "-o", "pid=,args="]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {int(line.split(None, 1)[0]): line.split(None, 1)[1] for line in output.splitlines()}


if __name__ == "__main__":
    main()
