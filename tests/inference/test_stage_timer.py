"""StageTimer: seconds, bytes and images of all threads, also of work that fails."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic, sleep

import pyarrow as pa
import pyarrow.parquet as pq

from camworker.inference.pipeline import localize_items
from camworker.inference.shard import ShardResult, run_shard
from camworker.inference.stage_timer import STAGES, StageTimer, StageTimes
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from support.factories import photograph, photographs_of, plan_of


def test_threads_add_up():
    stages = StageTimer()

    def work(_):
        with stages.timed("boxes"):
            sleep(0.05)
        stages.read(b"12345")
        stages.prepared()

    started = monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    wall = monotonic() - started
    spent = stages.spent
    assert 0.4 <= spent.seconds["boxes"] <= 4 * wall
    assert [spent.seconds[stage] for stage in STAGES if stage != "boxes"] == [0, 0, 0]
    assert spent.read_bytes == 40
    assert stages.waiting == 8
    stages.taken(3)
    assert stages.waiting == 5
    stages.empty()
    assert stages.waiting == 0


def test_time_of_failed_work_is_counted():
    stages = StageTimer()
    with suppress(OSError), stages.timed("commit"):
        sleep(0.02)
        raise OSError
    assert stages.spent.seconds["commit"] >= 0.02


def test_stage_times_do_not_change_later():
    stages = StageTimer()
    before = stages.spent
    with stages.timed("network"):
        sleep(0.01)
    assert before == StageTimes()
    assert stages.spent != before


def test_stage_times_can_be_added_and_subtracted():
    one = StageTimes({"fetch_decode": 1.0, "network": 2.0, "boxes": 0.5, "commit": 0.0}, 10)
    other = StageTimes({"fetch_decode": 0.5, "network": 0.5, "boxes": 0.5, "commit": 0.5}, 4)
    assert one + other == StageTimes({"fetch_decode": 1.5, "network": 2.5, "boxes": 1.0, "commit": 0.5}, 14)
    assert one - other == StageTimes({"fetch_decode": 0.5, "network": 1.5, "boxes": 0.0, "commit": -0.5}, 6)


def test_a_generator_is_timed_without_its_consumer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow():
        for number in range(3):
            now[0] += 1
            yield number
        now[0] += 0.5  # until it knows that there are no more

    stages = StageTimer()
    got = []
    for number in stages.timed_each("fetch_decode", slow()):
        got.append(number)
        now[0] += 100
    assert got == [0, 1, 2]
    assert stages.spent.seconds["fetch_decode"] == 3.5


def shard(ledger, plan, localizer, stages, number=0, decoders=3):
    return run_shard(
        ledger,
        plan,
        number,
        localizer,
        decode_threads=decoders,
        runtime_info={},
        on_batch=lambda rows: None,
        stage_timer=stages,
    )


def test_a_shard_has_stage_times_and_an_adopted_one_has_none(ledger, folder, tiny_localizer):
    (folder / "04.png").write_bytes(b"<html>")
    plan = plan_of(ledger, folder, 6)
    (folder / "05.png").unlink()
    stages = StageTimer()
    first, second = (shard(ledger, plan, tiny_localizer, stages, number) for number in (0, 1))
    sizes = [path.stat().st_size for path in sorted(folder.iterdir())]
    assert first.stage_times.read_bytes == sum(sizes[:5])
    assert second.stage_times.read_bytes == sum(sizes[5:])
    for done in (first, second):
        assert all(0 < done.stage_times.seconds[stage] <= 3 * done.seconds for stage in STAGES)
    assert stages.spent.read_bytes == first.stage_times.read_bytes + second.stage_times.read_bytes
    assert stages.waiting == 0
    assert shard(ledger, plan, tiny_localizer, stages) == ShardResult(first.part, 0.0)


def test_waiting_images_are_counted_until_they_are_discarded(folder, tiny_localizer):
    stages = StageTimer()
    batches = localize_items(
        photographs_of(folder), tiny_localizer, ReadPolicy(), decode_threads=2, stage_timer=stages
    )
    next(batches)
    deadline = monotonic() + 30
    while not stages.waiting and monotonic() < deadline:
        sleep(0.01)
    assert 0 < stages.waiting <= 7  # of eleven images four have come back
    batches.close()
    assert stages.waiting == 0


def test_rows_of_parquet_files_count_as_they_are_read(tmp_path, tiny_localizer):
    images = [photograph(n) for n in range(6)]
    pq.write_table(pa.table({"image_id": list("abcdef"), "image": images}), tmp_path / "in.parquet")
    source = open_source(str(tmp_path / "in.parquet"), tiny_localizer.package.classes)
    stages = StageTimer()
    rows = localize_items(
        source.items,
        tiny_localizer,
        source.policy,
        decode_threads=1,
        stage_timer=stages,
    )
    assert sum(table.num_rows for table, _ in rows) == 6
    assert stages.spent.read_bytes == sum(map(len, images))


def test_timing_does_not_change_the_parts(ledger, folder, tiny_localizer):
    plan = plan_of(ledger, folder)
    key = shard(ledger, plan, tiny_localizer, StageTimer()).part.key
    counted = pq.read_table(io.BytesIO(ledger.store.read(key)))
    ledger.store._objects.pop(key)
    shard(ledger, plan, tiny_localizer, None)
    assert pq.read_table(io.BytesIO(ledger.store.read(key))).equals(counted)
