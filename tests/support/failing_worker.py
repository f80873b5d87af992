"""Workers for the driver's tests: they load nothing, and fail, hang or die as their settings say."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from jobs.driver.worker_progress import WorkerProgress

HANG_SECONDS = 3600.0


@dataclass(frozen=True)
class Script:
    """What shards do before they are done: shard -> actions, one for each time that it is run.

    An action is "ok", "hang", "slow", "exit", or the name of an exception. log: a folder for what was run.
    """

    log: Path
    actions: dict[int, list[str]] = field(default_factory=dict)
    start: str = "ok"

    def runs(self) -> list[tuple[int, bool]]:
        """Every run that was begun, as it began: shard and whether it was careful."""
        names = sorted(path.name for path in self.log.iterdir())
        return [(int(shard), careful == "careful") for _, shard, careful in (n.split(" ") for n in names)]


@dataclass(frozen=True)
class Counts:
    """What a shard came to."""

    images: dict[str, int]
    careful: bool


class FailingWorker:
    """Stands in for jobs.worker.Worker."""

    def __init__(self, script: Script, cores: int) -> None:
        if script.start == "exit":
            os._exit(1)
        if script.start != "ok":
            raise ValueError(script.start)
        self._script, self._tally = script, WorkerProgress()

    def about(self) -> dict[str, Any]:
        return {"device": "none"}

    def run(self, generation: int, shard: int, careful: bool) -> Counts:
        before = Counter(number for number, _ in self._script.runs())[shard]
        name = f"{time.time():.4f} {shard} {'careful' if careful else 'fast'}"
        (self._script.log / name).touch()
        actions = self._script.actions.get(shard, [])
        act(actions[before] if before < len(actions) else "ok", self._tally)
        self._tally.add(["ok"] * 4)
        self._tally.running = Counter()
        return Counts({"ok": 4}, careful)

    @ray.method(concurrency_group="tally")
    def tally(self) -> WorkerProgress:
        return self._tally


def act(action: str, tally: WorkerProgress) -> None:
    """Do what a script says."""
    if action == "hang":
        time.sleep(HANG_SECONDS)
    elif action == "slow":
        for _ in range(8):  # longer than a worker may be quiet, but never quiet so long
            time.sleep(0.5)
            tally.prepare()
    elif action == "exit":
        os._exit(1)
    elif action != "ok":
        raise {"OSError": OSError, "MemoryError": MemoryError, "ValueError": ValueError}[action](action)
