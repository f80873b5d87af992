"""The tables of infra/SCALE.md, the S3 requests of a shard, and the driver with many simulated workers."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from camworker.inference.localizer import Localizer
from camworker.inference.shard import run_shard
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import write_generation
from camworker.storage.uris import open_store
from support.cli_runner import ENVIRONMENT
from support.factories import TINY_CLASSES, photograph
from support.fake_s3 import serve_fake_s3
from support.paths import TESTS
from support.seaweedfs import found_by_boto3

SCALE = TESTS.parent / "infra" / "SCALE.md"


def benchmark(name: str, *options: str) -> str:
    """Run a script of tests/benchmarks and return its output."""
    command = [sys.executable, TESTS / "benchmarks" / f"{name}.py", *options]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_document_has_the_computed_tables() -> None:
    document = SCALE.read_text().splitlines()
    assert not [line for line in benchmark("arithmetic").splitlines() if line not in document]


def test_requests_of_a_shard(tiny_localizer: Localizer) -> None:
    """A small plan file takes one request; a large one takes three, the others for its index and its rows."""
    with serve_fake_s3() as s3, found_by_boto3(s3.environment):
        s3.objects |= {f"bucket/in/{number}.png": photograph(number) for number in range(12)}
        ledger = Ledger(open_store("s3://bucket/out"), "r0123456789ab")
        items = open_source("s3://bucket/in", TINY_CLASSES).items
        plan = write_generation(ledger, 1, items, 4, ReadPolicy())
        s3.requests.clear()
        run_shard(
            ledger, plan, 1, tiny_localizer, decode_threads=2, runtime_info={}, on_batch=lambda rows: None
        )
    part = f"bucket/out/{ledger.layout.part_key(1, 1)}"
    assert Counter(s3.requests) == {
        f"HEAD {part}": 1,
        f"GET bucket/out/{plan.files[0].key}": 1,
        **{f"GET bucket/in/{name}": 1 for name in items["image_id"].to_pylist()[4:8]},
        f"PUT {part}": 1,
    }


@pytest.mark.ray
@pytest.mark.slow
def test_many_workers_do_every_shard_once_although_some_are_lost() -> None:
    # A shard has three attempts. With at most two losses none is given up, even if both hit the same shard.
    options = {"workers": 100, "hosts": 4, "shards": 300, "seconds": 3, "losses": 12, "most-losses": 2}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = json.loads(benchmark("simulate", *words).splitlines()[-1])
    assert result["hosts_lost"] >= 1
    assert result["workers_replaced"] >= 25
    assert (result["stopped"], result["lost"]) == (None, 0)
    assert result["done"] == result["results_kept"] == result["parts_committed"] == 300
    assert result["rss_mb_peak"] - result["rss_mb_before"] < 100
