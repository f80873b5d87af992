"""A script that kills the node of a running shard, like a spot instance, and prints the outcome as JSON.

It starts several Ray nodes on this machine, which requires a process of its own.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from jobs.driver.driver import Driver
from jobs.ray_cluster import Workers
from support.failing_worker import FailingWorker, Script


def main() -> None:
    script = Script(Path(sys.argv[1]), {0: ["hang"]})
    # The node of the driver has no core for a worker.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

    warnings: list[str] = []
    driver = Driver(FailingWorker, script, Workers(1, 1, 0), lambda _: None, on_warning=warnings.append)
    # Only the main thread starts and stops nodes.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(driver.run, [(1, 0), (1, 1)])
        while not script.runs() and not running.done():
            time.sleep(0.1)
        cluster.remove_node(first, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        outcome = running.result()
    done = sorted(shard for _, shard in outcome.done)
    print(json.dumps({"done": done, "lost": len(outcome.lost), "warnings": warnings, "runs": script.runs()}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
