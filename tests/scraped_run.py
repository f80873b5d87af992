"""A script: localize on a Ray cluster of its own, whose metrics are scraped meanwhile; says in JSON what was.

Samples by name and last tag, summed over workers. The cluster needs a process of its own.
"""

import json
import socket
import sys
import time
import urllib.request
from collections import Counter

from command import start
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

OPTIONS = ("--workers", "2", "--shard-size", "10", "--batch-size", "2", "--views", "ten-crop", "--json")


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

    running = start("localize", folder, "--output", out, *OPTIONS, "--address", cluster.address)
    while running.poll() is None:
        scrape()
        time.sleep(0.5)
    result, told = running.communicate()
    time.sleep(2)
    scrape()
    cluster.shutdown()
    if running.returncode:
        raise SystemExit(told)
    summary = json.loads(result.splitlines()[-1])
    print(json.dumps({"summary": summary, "types": types, "recipes": sorted(recipes), "scrapes": scrapes}))


if __name__ == "__main__":
    main()
