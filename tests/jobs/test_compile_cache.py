"""What a worker decides about compiling, and where it keeps what was compiled."""

from pathlib import Path

import pytest

from camworker.inference.localizer import Localizer
from jobs.localize.compile_cache import compile_if_worthwhile
from support.factories import tiny_package


class Recorded(Localizer):
    """A Localizer that compiles in words, and whose network takes a hundredth of a second an image."""

    why: str | None = None

    def seconds_each(self) -> float:
        return 0.01

    def compile_into(self, file: Path, *, streams: int = 1) -> str | None:
        file.touch()
        self.given = (file, streams)
        return self.why


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recorded(**options) -> Recorded:
    return Recorded(tiny_package(), device="cpu", **({"precision": "float32"} | options))


def test_off_and_a_few_images_leave_the_network_as_it_is(cache):
    assert compile_if_worthwhile(recorded(), "off", 10**9, 1) == "off"
    assert compile_if_worthwhile(recorded(), "auto", 50, 1) == "off"
    assert not cache.exists()


def test_it_is_compiled_where_asked_for_and_where_it_repays(cache):
    localizer = recorded()
    assert compile_if_worthwhile(localizer, "on", 1, 3).startswith("on: openvino 2")
    file, streams = localizer.given
    assert file.parent == cache / "camworker" / "compiled"
    assert file.parent.stat().st_mode & 0o077 == 0
    assert streams == 3
    file.unlink()
    # 1,401 images of 0.01 s, two at a time: 3.5 of 14 s saved, and compiling takes 7.
    assert compile_if_worthwhile(recorded(), "auto", 2_801, 2) == "off"
    assert compile_if_worthwhile(recorded(), "auto", 2_801, 1) != "off"
    # Now it is there, and only loaded.
    assert compile_if_worthwhile(recorded(), "auto", 402, 2) != "off"


def test_why_not_is_told():
    localizer = recorded()
    localizer.why = "no such layer"
    assert compile_if_worthwhile(localizer, "on", 1, 1) == "off: no such layer"


def test_a_cache_that_cannot_be_written_ends_nothing(cache):
    cache.write_text("no folder")
    assert compile_if_worthwhile(recorded(), "on", 1, 1).startswith("off: ")


def test_other_options_are_compiled_apart():
    localizers = [recorded(), recorded(batch_size=3), recorded(input_size=64), recorded(precision="bfloat16")]
    for localizer in localizers:
        compile_if_worthwhile(localizer, "on", 1, 1)
    assert len({localizer.given[0] for localizer in localizers}) == 4
    again = recorded(top_k=2, box_rule="cam:0.5")
    compile_if_worthwhile(again, "on", 1, 1)
    assert again.given[0] == localizers[0].given[0]
