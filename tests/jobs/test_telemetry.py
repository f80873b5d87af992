"""Prometheus metrics of workers and drivers, and the metrics endpoint of a running job."""

import json
import subprocess
import sys
from collections import Counter as Counts
from collections import defaultdict
from typing import Any

import pytest

from camworker.inference.stage_timer import StageTimer
from jobs.driver import telemetry
from jobs.driver.telemetry import DriverMetrics, DriverStatus, WorkerMetrics
from support.cli_runner import ENVIRONMENT, photographs
from support.paths import SUPPORT


class Recorded:
    """Stands in for Ray's Counter and Gauge, with their restrictions."""

    told: dict[tuple[str, str], float]

    def __init__(self, name, description, tag_keys):
        assert description
        self.name, self.tag_keys, self.default = name.removeprefix("camworker_"), tag_keys, {}

    def set_default_tags(self, tags):
        self.default = tags
        return self

    def inc(self, value, tags=None):
        if value <= 0:
            raise ValueError(value)
        self.told[self.key(tags)] += value

    def set(self, value, tags=None):
        self.told[self.key(tags)] = value

    def key(self, tags):
        every = {**self.default, **(tags or {})}
        assert tuple(every) == self.tag_keys
        assert every.pop("recipe") == "r0123456789ab"
        return self.name, "".join(every.values())


@pytest.fixture
def told(monkeypatch):
    Recorded.told = defaultdict(float)
    monkeypatch.setattr(telemetry, "Counter", Recorded)
    monkeypatch.setattr(telemetry, "Gauge", Recorded)
    return Recorded.told


class ManualTimer(StageTimer):
    """A StageTimer whose times are set by the test."""

    def spend(self, **seconds):
        for stage, value in seconds.items():
            self._seconds[stage] += value


def test_a_worker_publishes_changes(told):
    stages = ManualTimer()
    stages.spend(network=100.0)  # spent before the metrics were made
    metrics = WorkerMetrics("r0123456789ab", stages, on_gpu=False)
    stages.spend(network=2.0, fetch_decode=3.0)
    stages.read(b"123")
    stages.prepared()
    metrics.publish(["ok", "ok", "poison"])
    expected = {
        ("images_total", "ok"): 2,
        ("images_total", "poison"): 1,
        ("stage_seconds_total", "network"): 2,
        ("stage_seconds_total", "fetch_decode"): 3,
        ("read_bytes_total", ""): 3,
        ("queue_depth", ""): 1,
    }
    assert told == expected
    stages.spend(network=0.5, commit=1.0)
    stages.taken(1)
    metrics.publish()
    assert told == expected | {
        ("stage_seconds_total", "network"): 2.5,
        ("stage_seconds_total", "commit"): 1,
        ("queue_depth", ""): 0,
    }


def test_a_worker_on_a_gpu_publishes_its_busy_share(told, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now[0])
    stages = ManualTimer()
    metrics = WorkerMetrics("r0123456789ab", stages, on_gpu=True)
    for seconds, network, expected in (
        (3.0, 1.0, None),  # too short to measure
        (5.0, 4.0, 5 / 8),  # since the start
        (10.0, 2.0, 2 / 10),
        (5.0, 5.1, 1.0),
        (1.0, 0.0, 1.0),
    ):
        now[0] += seconds
        stages.spend(network=network)
        metrics.publish()
        assert told.get(("gpu_busy_ratio", "")) == expected


def test_a_driver_publishes_changes_and_its_status(told):
    metrics = DriverMetrics("r0123456789ab")
    metrics.publish(DriverStatus(done=0, failed=0, lost=0, waiting=9, workers=0))
    assert told == {("shards_waiting", ""): 9, ("workers", ""): 0}
    metrics.publish(DriverStatus(done=2, failed=1, lost=0, waiting=4, workers=3))
    metrics.publish(DriverStatus(done=3, failed=4, lost=1, waiting=0, workers=2))
    expected = {
        ("shards_total", "done"): 3,
        ("shards_total", "failed"): 4,
        ("shards_total", "lost"): 1,
        ("shards_waiting", ""): 0,
        ("workers", ""): 2,
    }
    assert told == expected
    # The next generation counts from 0; its metrics continue.
    DriverMetrics("r0123456789ab").publish(DriverStatus(done=1, failed=0, lost=0, waiting=0, workers=2))
    assert told == expected | {("shards_total", "done"): 4}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run scraped_run.py on 89 photographs and a broken one; return its result with the run record."""
    home = tmp_path_factory.mktemp("scraped")
    folder = photographs(home / "in", 89)
    (folder / "broken.jpg").write_bytes((folder / "0000.jpg").read_bytes()[:999])
    done = subprocess.run(
        [sys.executable, SUPPORT / "scraped_run.py", folder, home / "out"],
        # By default metrics are reported every 10 s, and the last ones of a worker would be lost.
        env={**ENVIRONMENT, "RAY_metrics_report_interval_ms": "1000"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    (record,) = (home / "out").rglob("run-0001.json")
    size = sum(path.stat().st_size for path in folder.iterdir())
    result = json.loads(done.stdout.splitlines()[-1])
    return {**result, "record": json.loads(record.read_text()), "size": size}


@pytest.mark.ray
@pytest.mark.slow
def test_a_running_job_is_scraped(scraped: dict[str, Any]) -> None:
    """Ray's metrics endpoint is scraped twice a second during the run and once after it."""
    summary, record, last = scraped["summary"], scraped["record"], scraped["scrapes"][-1]
    assert scraped["types"] == {
        "ray_camworker_images_total": "counter",
        "ray_camworker_stage_seconds_total": "counter",
        "ray_camworker_read_bytes_total": "counter",
        "ray_camworker_shards_total": "counter",
        "ray_camworker_queue_depth": "gauge",
        "ray_camworker_shards_waiting": "gauge",
        "ray_camworker_workers": "gauge",
    }
    assert scraped["recipes"] == [summary["recipe"]]

    # At the end the counters equal those of the run record.
    assert last["ray_camworker_images_total ok"] == summary["ok"] == 89
    assert last["ray_camworker_images_total decode_error"] == 1
    assert last["ray_camworker_shards_total done"] == summary["parts"] == 3
    assert last["ray_camworker_read_bytes_total"] == record["read_bytes"] == scraped["size"]
    threads = 2
    for stage, seconds in record["stages"].items():
        assert last[f"ray_camworker_stage_seconds_total {stage}"] == pytest.approx(seconds, abs=0.002)
        assert 0 < seconds < record["seconds"] * threads
    assert (record["failed_attempts"], record["restarts"]) == (0, 0)

    # During the run they grow to these values.
    images = [scrape.get("ray_camworker_images_total ok", 0) for scrape in scraped["scrapes"]]
    assert images == sorted(images)
    assert set(images) - {0, 89}
    most = Counts[str]()
    for scrape in scraped["scrapes"]:
        most |= Counts(scrape)
    assert most["ray_camworker_workers"] == 1
    assert 0 < most["ray_camworker_shards_waiting"] <= 3
    assert 0 < most["ray_camworker_queue_depth"] <= 3 * 2


@pytest.mark.ray
@pytest.mark.slow
def test_every_line_of_the_log_has_its_context(scraped: dict[str, Any]) -> None:
    recipe = scraped["summary"]["recipe"]
    driver, workers = ([json.loads(line) for line in scraped[name]] for name in ("driver_log", "worker_log"))
    assert {line["recipe"] for line in driver + workers} == {recipe}
    assert [line["message"] for line in driver] == ["generation 1: 90 images in 3 shards", "generation done"]
    assert [line["generation"] for line in driver] == [1, 1]
    assert driver[-1]["images"] == {"ok": 89, "decode_error": 1}

    by_message = defaultdict(list)
    for line in workers:
        by_message[line["message"]].append(line)
    assert {message: len(lines) for message, lines in by_message.items()} == {
        "worker started": 1,
        "shard started": 3,
        "shard done": 3,
        "image failed": 1,
    }
    assert {line["precision"] for line in by_message["worker started"]} == {"float32"}
    assert "torch" in by_message["worker started"][0]["versions"]
    for message in ("shard started", "shard done"):
        assert sorted((line["generation"], line["shard"]) for line in by_message[message]) == [
            *((1, 0), (1, 1), (1, 2))
        ]
    assert sum(line["read_bytes"] for line in by_message["shard done"]) == scraped["size"]
    (failed,) = by_message["image failed"]
    assert (failed["image_id"], failed["shard"]) == ("broken.jpg", 2)
