"""An image that crashes or hangs its decoder affects neither the other images nor the run."""

import io
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from camworker.dataset import latest
from camworker.errors import Failure
from camworker.images import isolated_decoder
from camworker.images.decode import PreprocessedImage
from camworker.images.isolated_decoder import IsolatedDecoder
from camworker.inference.localizer import Localizer
from camworker.ledger.lease import is_gone, process_name
from support.cli_runner import camworker, photographs
from support.factories import photograph
from support.fatal_decoder import ABORT, HANG, install_in_children
from support.paths import SUPPORT

FATAL = (sys.executable, str(SUPPORT / "fatal_decoder.py"))


def test_images_are_preprocessed_as_by_the_localizer(tiny_localizer: Localizer) -> None:
    with IsolatedDecoder(32, "squash") as decoder:
        for seed, kind in enumerate(("PNG", "JPEG", "GIF")):
            data = photograph(seed, kind=kind)
            isolated, expected = decoder.preprocess(data), tiny_localizer.preprocess(data)
            assert isinstance(isolated, PreprocessedImage)
            assert isinstance(expected, PreprocessedImage)
            assert isolated.frame == expected.frame
            assert isolated.pixels_CHW.equal(expected.pixels_CHW)
        for broken in (b"", b"words", photograph(0)[:60]):
            assert decoder.preprocess(broken) == tiny_localizer.preprocess(broken)


def test_image_that_crashes_its_decoder_is_poison_and_the_next_is_not() -> None:
    with IsolatedDecoder(32, "squash", child=FATAL) as decoder:
        assert isinstance(decoder.preprocess(photograph(1)), PreprocessedImage)
        poison = decoder.preprocess(photograph(2) + ABORT)
        assert poison == Failure("poison", "decoding it ended its process (signal SIGABRT)")
        assert isinstance(decoder.preprocess(photograph(3)), PreprocessedImage)


def test_image_that_hangs_its_decoder_is_poison() -> None:
    with IsolatedDecoder(32, "squash", child=FATAL, seconds=1) as decoder:
        poison = decoder.preprocess(photograph(2) + HANG)
        assert poison == Failure("poison", "decoding it did not end within 1 s")
        assert isinstance(decoder.preprocess(photograph(3)), PreprocessedImage)


def test_image_that_needs_too_much_memory_is_not_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(data: bytes) -> Failure:
        raise MemoryError("no room")

    monkeypatch.setattr(isolated_decoder, "decode", decode)
    length = struct.Struct("<Q")
    requests = b"".join(length.pack(len(m)) + m for m in (b'[32, "squash"]', b"an image", b"another"))
    replies = io.BytesIO()
    isolated_decoder.serve(io.BytesIO(requests), replies)
    answer = b'{"status": "too_large", "reason": "there is not enough memory for it: no room"}'
    expected = b"".join(length.pack(len(m)) + m for m in (b"ready", answer, answer))
    assert replies.getvalue() == expected


def test_child_that_does_not_start_raises() -> None:
    with (
        IsolatedDecoder(32, "squash", child=(sys.executable, "-c", "pass")) as decoder,
        pytest.raises((EOFError, BrokenPipeError)),
    ):
        decoder.preprocess(photograph(1))


def test_child_that_hangs_ends_with_a_worker_that_is_killed() -> None:
    """No process is left to end it, and it does not notice that its input is closed."""
    code = (
        "import struct, subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "for message in (b'[32, \"squash\"]', b'this one hangs'):\n"
        "    child.stdin.write(struct.pack('<Q', len(message)) + message)\n"
        "    child.stdin.flush()\n"
        "child.stdout.read(13)\n"  # The child is ready; the next image hangs it.
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    command = [sys.executable, "-c", code, *FATAL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        child = process_name(int(worker.stdout.readline()))
        assert child is not None
        worker.kill()
    deadline = time.monotonic() + 10
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_gone(child)


@pytest.mark.ray
@pytest.mark.slow
def test_only_the_crashing_image_of_a_run_is_poison(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "in", 24)
    victim = folder / "0011.jpg"
    victim.write_bytes(victim.read_bytes() + ABORT)
    path = install_in_children(tmp_path / "site")
    out = tmp_path / "out"
    done = camworker(
        *("localize", folder, "--output", out, "--shard-size", "8", "--json"),
        environment={"PYTHONPATH": path},
    )
    assert done.code == 0, done.err
    assert done.json["failed"] == {"poison": 1}
    rows = latest(str(out))
    assert Counter(rows["status"].to_pylist()) == {"ok": 23, "poison": 1}
    poison = next(row for row in rows.to_pylist() if row["status"] == "poison")
    assert poison["image_id"] == "0011.jpg"
    assert "SIGABRT" in poison["error"]
