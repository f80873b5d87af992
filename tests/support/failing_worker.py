"""Workers for the tests of the driver, which load nothing and fail, hang or die as their settings say."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from camworker.errors import CommitError
from jobs.driver.worker_process import RuntimeInfo
from jobs.driver.worker_progress import WorkerProgress

HANG_SECONDS = 3600.0


@dataclass(frozen=True)
class Script:
    """What shards do before they are done.

    Attributes:
        log: A folder that records every run.
        actions: For each shard one action per run: "ok", "hang", "slow", "exit" or the name of an exception.
        start: What the constructor does: "ok", "exit", "CommitError" or the message of a ValueError.
    """

    log: Path
    actions: dict[int, list[str]] = field(default_factory=dict)
    start: str = "ok"

    def runs(self) -> list[tuple[int, bool]]:
        """Return every run in the order of their starts: the shard and whether decoding was isolated."""
        names = sorted(path.name for path in self.log.iterdir())
        return [(int(shard), mode == "isolated") for _, shard, mode in (n.split(" ") for n in names)]


@dataclass(frozen=True)
class Counts:
    """The result of a shard."""

    images: dict[str, int]
    isolated: bool


class FailingWorker:
    """Stands in for a worker of localize."""

    def __init__(self, script: Script, cores: int) -> None:
        if script.start == "exit":
            os._exit(1)
        if script.start == "CommitError":
            raise CommitError("refused")
        if script.start != "ok":
            raise ValueError(script.start)
        self._script, self.progress = script, WorkerProgress()

    def runtime_info(self) -> RuntimeInfo:
        return {"device": "none"}

    def run(self, generation: int, shard: int, isolate: bool) -> Counts:
        before = Counter(number for number, _ in self._script.runs())[shard]
        name = f"{time.time():.4f} {shard} {'isolated' if isolate else 'fast'}"
        (self._script.log / name).touch()
        actions = self._script.actions.get(shard, [])
        act(actions[before] if before < len(actions) else "ok", self.progress)
        self.progress.count_batch(["ok"] * 4)
        self.progress.running = Counter()
        return Counts({"ok": 4}, isolate)


def act(action: str, progress: WorkerProgress) -> None:
    """Carry out an action."""
    if action == "hang":
        time.sleep(HANG_SECONDS)
    elif action == "slow":
        for _ in range(8):  # longer in all than a worker may be quiet
            time.sleep(0.5)
            progress.count_image()
    elif action == "exit":
        os._exit(1)
    elif action != "ok":
        raise {"OSError": OSError, "MemoryError": MemoryError, "ValueError": ValueError}[action](action)
