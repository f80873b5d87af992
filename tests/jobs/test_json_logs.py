"""Logs: a JSON object a line, on every line the recipe, generation and shard, and no secret."""

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from camworker.inference.out_of_memory import AdaptiveForward
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.ledger.plan import write_generation
from jobs.driver import json_logs as logs
from support.factories import photograph, photographs_of, plan_of, run
from support.recipes import make_recipe

pytest_plugins = ["support.s3_fixtures"]


@pytest.fixture
def lines(capsys):
    """Collects what has been written since it was last called."""
    before = (logs.LOG.handlers, logs.LOG.level, logs.LOG.propagate)

    def read():
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield read
    logs.LOG.handlers, logs.LOG.propagate = before[0], before[2]
    logs.LOG.setLevel(before[1])


def test_a_line_says_what_happened_and_where(lines):
    logs.write_json_lines()
    log = logs.LOG.getChild("worker")
    log.info("worker started", extra={"device": "cpu"})
    with logs.log_context(recipe="r0123456789ab"):
        with logs.log_context(generation=2, shard=7):
            log.warning("%s of %s", 1, 2, extra={"images": {"ok": 3}})
        log.debug("not asked for")
        log.error("over")
    first, second, third = lines()
    assert datetime.now().astimezone() - datetime.fromisoformat(first.pop("time")) < timedelta(minutes=1)
    assert (isinstance(first.pop("host"), str), isinstance(first.pop("pid"), int)) == (True, True)
    place = {"recipe": None, "generation": None, "shard": None}
    said = {"level": "info", "logger": "camworker.worker", "message": "worker started", "device": "cpu"}
    assert first == place | said
    assert (second["level"], second["message"], second["images"]) == ("warning", "1 of 2", {"ok": 3})
    assert (second["recipe"], second["generation"], second["shard"]) == ("r0123456789ab", 2, 7)
    assert (third["recipe"], third["generation"], third["shard"]) == ("r0123456789ab", None, None)


def test_an_exception_is_one_line_too(lines):
    logs.write_json_lines()
    try:
        raise OSError("no\nspace")
    except OSError:
        logs.LOG.exception("shard failed")
    (line,) = lines()
    assert line["exception"].splitlines()[-1] == "space"
    assert line["level"] == "error"


def test_other_threads_say_their_own_place(lines):
    logs.write_json_lines()

    def work(shard):
        with logs.log_context(shard=shard):
            logs.LOG.info("at work", extra={"meant": shard})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(20)))
    said = lines()
    assert sorted(line["shard"] for line in said) == list(range(20))
    assert all(line["shard"] == line["meant"] for line in said)


def test_where_nobody_asks_there_are_none():
    program = (
        "from jobs.driver.json_logs import LOG; LOG.error('lost'); LOG.getChild('driver').warning('failed')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_images_that_fail_are_told_where_so_much_is_wanted(ledger, folder, tiny_localizer, lines):
    (folder / "03.png").write_bytes(photograph(3)[:100])
    plan = plan_of(ledger, folder, 5)
    logs.write_json_lines()
    run(ledger, plan, tiny_localizer, 0)
    assert lines() == []
    logs.write_json_lines(logging.DEBUG)
    run(ledger, plan, tiny_localizer, 1)
    assert lines() == []
    plan = write_generation(ledger, 2, photographs_of(folder), 5, ReadPolicy())
    run(ledger, plan, tiny_localizer, 0)
    (line,) = lines()
    assert (line["message"], line["image_id"], line["status"]) == ("image failed", "03.png", "decode_error")
    assert line["error"]


def test_fewer_images_at_a_time_are_told(tiny_localizer, monkeypatch, lines):
    def forward(batch, labels):
        if len(batch) > 1:
            raise MemoryError

    monkeypatch.setattr(tiny_localizer, "forward", forward)
    logs.write_json_lines()
    AdaptiveForward(tiny_localizer)([None] * 4, [()] * 4)  # type: ignore[list-item]
    assert [(line["level"], line["batch_size"]) for line in lines()] == [("warning", 2), ("warning", 1)]


@pytest.mark.parametrize("trouble", [403, 404, 500, "reset"])
def test_no_line_holds_a_credential(fake_s3, tiny_localizer, ledger, folder, lines, monkeypatch, trouble):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "Sesame/Open+1")
    fake_s3.objects["bucket/in/a.png"] = photograph(0)
    items = open_source("s3://bucket/in", tiny_localizer.package.classes).items
    fake_s3.fault = lambda method, name, count: trouble if name.endswith("a.png") else None
    ledger.write_recipe(make_recipe())
    plan = write_generation(ledger, 1, items, 5, ReadPolicy())
    logs.write_json_lines(logging.DEBUG)
    run(ledger, plan, tiny_localizer, 0)
    (line,) = lines()
    assert (line["image_id"], line["status"]) == ("a.png", "read_error")
    assert "Sesame" not in json.dumps(line)
