"""A script: the node of a running shard is killed, as a spot instance is; says in JSON what the driver did.

With Ray's cluster of several nodes on one machine, which needs a process of its own.
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
    # No worker fits on the node of the driver.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

    told: list[str] = []
    driver = Driver(FailingWorker, script, Workers(1, 1, 0), lambda _: None, on_warning=told.append)
    # Nodes are started and ended by the main thread alone.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(driver.run, [(1, 0), (1, 1)])
        while not script.runs() and not running.done():
            time.sleep(0.1)
        cluster.remove_node(first, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        outcome = running.result()
    done = sorted(shard for _, shard in outcome.done)
    print(json.dumps({"done": done, "lost": len(outcome.lost), "told": told, "runs": script.runs()}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
