"""A script: a cluster of a head without cores and two nodes; kills the raylet of one when it reads "kill"."""

import os
import signal
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            os.kill(nodes[0].all_processes["raylet"][0].process.pid, signal.SIGKILL)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
