"""Careful decoding: the image that kills or hangs its decoder is alone, in a process and in a run."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from command import camworker, photographs
from conftest import photograph
from fatal_decoder import ABORT, HANG

from camworker.careful import CarefulDecoder
from camworker.dataset import latest
from camworker.errors import Failure
from camworker.localizer import Localizer, Prepared

FATAL = (sys.executable, str(Path(__file__).with_name("fatal_decoder.py")))


def test_it_prepares_what_the_localizer_does(tiny_localizer: Localizer) -> None:
    with CarefulDecoder(32, "squash") as decoder:
        for seed, kind in enumerate(("PNG", "JPEG", "GIF")):
            data = photograph(seed, kind=kind)
            ours, theirs = decoder.prepare(data), tiny_localizer.prepare(data)
            assert isinstance(ours, Prepared)
            assert isinstance(theirs, Prepared)
            assert ours.frame == theirs.frame
            assert ours.pixels_CHW.equal(theirs.pixels_CHW)
        for broken in (b"", b"words", photograph(0)[:60]):
            assert decoder.prepare(broken) == tiny_localizer.prepare(broken)


def test_an_image_that_kills_its_decoder_is_poison_and_the_next_is_not() -> None:
    with CarefulDecoder(32, "squash", child=FATAL) as decoder:
        assert isinstance(decoder.prepare(photograph(1)), Prepared)
        poison = decoder.prepare(photograph(2) + ABORT)
        assert poison == Failure("poison", "decoding it ended its process (signal SIGABRT)")
        assert isinstance(decoder.prepare(photograph(3)), Prepared)


def test_an_image_that_hangs_its_decoder_is_poison() -> None:
    with CarefulDecoder(32, "squash", child=FATAL, seconds=1) as decoder:
        poison = decoder.prepare(photograph(2) + HANG)
        assert poison == Failure("poison", "decoding it did not end within 1 s")
        assert isinstance(decoder.prepare(photograph(3)), Prepared)


def test_a_child_that_does_not_start_is_no_images_fault() -> None:
    with (
        CarefulDecoder(32, "squash", child=(sys.executable, "-c", "pass")) as decoder,
        pytest.raises((EOFError, BrokenPipeError)),
    ):
        decoder.prepare(photograph(1))


@pytest.mark.ray
@pytest.mark.slow
def test_in_a_run_the_fatal_image_alone_is_poison(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "in", 24)
    victim = folder / "0011.jpg"
    victim.write_bytes(victim.read_bytes() + ABORT)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys, fatal_decoder; sys.meta_path.insert(0, fatal_decoder.Finder())"
    )
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parent)])
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
