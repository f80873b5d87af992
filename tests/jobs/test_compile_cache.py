"""Whether a worker compiles its network, and the cache of compiled networks."""

from pathlib import Path

import pytest

from camworker.inference.localizer import Localizer
from jobs.localize.compile_cache import compile_if_worthwhile
from support.factories import tiny_package
from support.tapped_network import tapped_package


class Recorded(Localizer):
    """A Localizer that records how it is compiled and takes 0.01 s per image."""

    failure: str | None = None

    def seconds_per_image(self) -> float:
        return 0.01

    def compile_into(self, file: Path, *, streams: int = 1) -> str | None:
        file.touch()
        self.call = (file, streams)
        return self.failure


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recorded(**options) -> Recorded:
    return Recorded(tiny_package(), device="cpu", **({"precision": "float32"} | options))


def test_off_and_few_images_do_not_compile(cache: Path) -> None:
    assert compile_if_worthwhile(recorded(), "off", 10**9, 1) == "off"
    assert compile_if_worthwhile(recorded(), "auto", 50, 1) == "off"
    assert not cache.exists()


def test_compiling_is_requested_or_worthwhile(cache: Path) -> None:
    localizer = recorded()
    assert compile_if_worthwhile(localizer, "on", 1, 3).startswith("on: openvino 2")
    file, streams = localizer.call
    assert file.parent == cache / "camworker" / "compiled"
    assert file.parent.stat().st_mode & 0o077 == 0
    assert streams == 3
    file.unlink()
    # 1,401 images of 0.01 s, two at a time: 3.5 of 14 s saved, and compiling takes 7.
    assert compile_if_worthwhile(recorded(), "auto", 2_801, 2) == "off"
    assert compile_if_worthwhile(recorded(), "auto", 2_801, 1) != "off"
    # From now on it is loaded from the cache.
    assert compile_if_worthwhile(recorded(), "auto", 402, 2) != "off"


def test_a_failure_is_described() -> None:
    localizer = recorded()
    localizer.failure = "no such layer"
    assert compile_if_worthwhile(localizer, "on", 1, 1) == "off: no such layer"


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.write_text("no folder")
    assert compile_if_worthwhile(recorded(), "on", 1, 1).startswith("off: ")


def test_every_setting_has_its_own_entry() -> None:
    localizers = [recorded(), recorded(batch_size=3), recorded(input_size=64), recorded(precision="bfloat16")]
    for localizer in localizers:
        compile_if_worthwhile(localizer, "on", 1, 1)
    assert len({localizer.call[0] for localizer in localizers}) == 4
    tapped = [Recorded(tapped_package(), device="cpu", refine=refine) for refine in ("none", "ridge")]
    for localizer in tapped:
        compile_if_worthwhile(localizer, "on", 1, 1)
    assert tapped[0].call[0] != tapped[1].call[0]
    again = recorded(top_k=2, box_rule="cam:0.5")
    compile_if_worthwhile(again, "on", 1, 1)
    assert again.call[0] == localizers[0].call[0]
