"""Measure what the driver keeps of finished shards: python run_record.py 25000 [250000 ...].

For each number of shards, in a process of its own: the MB that the results of workers take, the bytes of the
run record, the seconds of processor time to make it, and by how many MB that raises the peak of memory.
"""

import hashlib
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from simulated_workers import rss_mb

from camworker.inference.shard import ShardResult
from camworker.inference.stage_timer import STAGES, StageTimes
from camworker.inputs import ReadPolicy
from camworker.ledger.ledger import Ledger
from camworker.ledger.records import Part, Plan
from camworker.storage.local import LocalStore
from jobs.driver.outcome import Outcome
from jobs.localize.generation_runner import _run_record


def main() -> None:
    if len(sys.argv) == 2:
        print(json.dumps(measure(int(sys.argv[1]))))
    for count in sys.argv[1:] if len(sys.argv) > 2 else ():
        subprocess.run([sys.executable, __file__, count], check=True)


def measure(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(LocalStore(folder), "r0123456789ab")
        received = [pickle.dumps(result(ledger, shard)) for shard in range(count)]
        before, outcome = rss_mb(), Outcome[ShardResult]()
        for shard, data in enumerate(received):
            outcome.done[1, shard] = pickle.loads(data)
        held = rss_mb() - before
        del received
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ledger.commit_run(_run_record(Plan(ledger.recipe, 1, (), ReadPolicy()), outcome, 1.0))
        return {
            "shards": count,
            "held_mb": round(held, 1),
            "record_bytes": next(entry.size for entry in ledger.store.list()),
            "record_seconds": round(time.process_time() - started, 2),
            "record_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6),
        }


def result(ledger: Ledger, shard: int) -> ShardResult:
    """Return the result of a shard of 4096 images, one of which is damaged."""
    sha256 = hashlib.sha256(str(shard).encode()).hexdigest()
    images = {"ok": 4095, "decode_error": 1}
    spent = StageTimes(
        {stage: shard + number / 10 for number, stage in enumerate(STAGES)}, 437_000_000 + shard
    )
    return ShardResult(
        Part(shard, ledger.layout.part_key(1, shard), 4096, 3_500_000, sha256, images), 40.0, spent
    )


if __name__ == "__main__":
    main()
