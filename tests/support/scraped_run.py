"""A script that runs localize on a Ray cluster, scrapes its metrics meanwhile, and prints both as JSON.

The JSON has the samples by name and tag, summed over workers, and the log lines of the driver and of the
workers. The cluster requires a process of its own.
"""

import json
import socket
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

from support.cli_runner import start

OPTIONS = (
    *("--workers", "1", "--shard-size", "30", "--batch-size", "2"),
    *("--views", "ten-crop", "--precision", "float32", "--verbose"),
)


def main() -> None:
    folder, out = sys.argv[1:]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    head = {"num_cpus": 2, "include_dashboard": False, "metrics_export_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    scrapes: list[Counter[str]] = []
    types: dict[str, str] = {}
    recipes: set[str] = set()

    def scrape() -> None:
        samples = Counter[str]()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name.startswith("ray_camworker_"):
                        types[sample.name] = family.type
                        recipes.add(sample.labels["recipe"])
                        tags = [sample.labels.get(name) for name in ("status", "stage", "outcome")]
                        samples[" ".join(filter(None, [sample.name, *tags]))] += sample.value
        scrapes.append(samples)

    running = start("localize", folder, "--output", out, "--json", *OPTIONS, "--address", cluster.address)
    while running.poll() is None:
        scrape()
        time.sleep(0.5)
    result, log = running.communicate()
    time.sleep(2)
    scrape()
    files = Path(cluster.head_node.get_logs_dir_path()).glob("worker-*.err")
    worker_log = [line for file in sorted(files) for line in file.read_text().splitlines()]
    cluster.shutdown()
    if running.returncode:
        raise SystemExit(log)
    outcome = {
        "summary": json.loads(result.splitlines()[-1]),
        "types": types,
        "recipes": sorted(recipes),
        "scrapes": scrapes,
        "driver_log": [line for line in log.splitlines() if line.startswith("{")],
        "worker_log": [line for line in worker_log if line.startswith("{")],
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
