"""JSON logs: every line names the recipe, generation and shard, and none holds a credential."""

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
from jobs.driver.json_logs import LOG, log_context, write_json_lines
from support.factories import photograph, photographs_of, plan_of, run
from support.recipes import make_recipe

pytest_plugins = ["support.s3_fixtures"]


@pytest.fixture
def lines(capsys):
    """Return a function that returns the lines written since its last call."""
    before = (LOG.handlers, LOG.level, LOG.propagate)

    def read():
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield read
    LOG.handlers, LOG.propagate = before[0], before[2]
    LOG.setLevel(before[1])


def test_a_line_has_message_context_and_extra_fields(lines):
    write_json_lines()
    log = LOG.getChild("worker")
    log.info("worker started", extra={"device": "cpu"})
    with log_context(recipe="r0123456789ab"):
        with log_context(generation=2, shard=7):
            log.warning("%s of %s", 1, 2, extra={"images": {"ok": 3}})
        log.debug("below the level")
        log.error("over")
    first, second, third = lines()
    assert datetime.now().astimezone() - datetime.fromisoformat(first.pop("time")) < timedelta(minutes=1)
    assert (isinstance(first.pop("host"), str), isinstance(first.pop("pid"), int)) == (True, True)
    context = {"recipe": None, "generation": None, "shard": None}
    fields = {"level": "info", "logger": "camworker.worker", "message": "worker started", "device": "cpu"}
    assert first == context | fields
    assert (second["level"], second["message"], second["images"]) == ("warning", "1 of 2", {"ok": 3})
    assert (second["recipe"], second["generation"], second["shard"]) == ("r0123456789ab", 2, 7)
    assert (third["recipe"], third["generation"], third["shard"]) == ("r0123456789ab", None, None)


def test_an_exception_is_part_of_its_line(lines):
    write_json_lines()
    try:
        raise OSError("no\nspace")
    except OSError:
        LOG.exception("shard failed")
    (line,) = lines()
    assert line["exception"].splitlines()[-1] == "space"
    assert line["level"] == "error"


def test_every_thread_has_its_own_context(lines):
    write_json_lines()

    def work(shard):
        with log_context(shard=shard):
            LOG.info("at work", extra={"expected": shard})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(20)))
    written = lines()
    assert sorted(line["shard"] for line in written) == list(range(20))
    assert all(line["shard"] == line["expected"] for line in written)


def test_nothing_is_logged_by_default():
    program = (
        "from jobs.driver.json_logs import LOG; LOG.error('lost'); LOG.getChild('driver').warning('failed')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_failed_images_are_logged_at_debug_level(ledger, folder, tiny_localizer, lines):
    (folder / "03.png").write_bytes(photograph(3)[:100])
    plan = plan_of(ledger, folder, 5)
    write_json_lines()
    run(ledger, plan, tiny_localizer, 0)
    assert lines() == []
    write_json_lines(logging.DEBUG)
    run(ledger, plan, tiny_localizer, 1)
    assert lines() == []
    plan = write_generation(ledger, 2, photographs_of(folder), 5, ReadPolicy())
    run(ledger, plan, tiny_localizer, 0)
    (line,) = lines()
    assert (line["message"], line["image_id"], line["status"]) == ("image failed", "03.png", "decode_error")
    assert line["error"]


def test_smaller_batches_are_logged(tiny_localizer, monkeypatch, lines):
    def forward(batch, labels):
        if len(batch) > 1:
            raise MemoryError

    monkeypatch.setattr(tiny_localizer, "forward", forward)
    write_json_lines()
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
    write_json_lines(logging.DEBUG)
    run(ledger, plan, tiny_localizer, 0)
    (line,) = lines()
    assert (line["image_id"], line["status"]) == ("a.png", "read_error")
    assert "Sesame" not in json.dumps(line)
