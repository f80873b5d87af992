"""Compilation: when it is worthwhile, equal results for batches of any size, and the compiled file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from camworker.inference import pixel_network
from camworker.inference.compile import is_worthwhile
from camworker.inference.compilers.aotinductor import compile_for_cuda, load_for_cuda
from camworker.inference.localizer import Localizer
from support.factories import encode, tiny_package


@pytest.mark.parametrize(
    ("images", "seconds_per_image", "device", "compiled", "expected"),
    [
        (50, 0.01, "cpu", False, False),
        (50, 0.01, "cpu", True, False),
        (200, 0.01, "cpu", True, False),
        (201, 0.01, "cpu", True, True),  # saves more than half a second, and loading takes as much
        (2_800, 0.01, "cpu", False, False),
        (2_801, 0.01, "cpu", False, True),
        (1_000_000, 0.000_01, "cpu", False, False),
        (0, 1.0, "cpu", True, False),
        (10_000, 0.005, "cuda", False, False),  # saves 12.5 s of the 40 s that compiling takes there
        (10_000, 0.005, "cuda", True, True),
        (32_001, 0.005, "cuda", False, True),
    ],
)
def test_compiling_is_worthwhile_if_it_saves_more_than_it_costs(
    images, seconds_per_image, device, compiled, expected
):
    assert is_worthwhile(images, seconds_per_image, device=device, compiled=compiled) is expected


def photographs(count: int) -> list[bytes]:
    rng = np.random.default_rng(3)
    return [encode(rng.integers(0, 256, (40, 48, 3), np.uint8), "PNG") for _ in range(count)]


def tiny() -> Localizer:
    return Localizer(tiny_package(), device="cpu", precision="float32", batch_size=4)


def test_a_compiled_network_gives_the_same_rows_and_is_loaded_again(tmp_path, monkeypatch):
    file, images = tmp_path / "tiny.pt2", photographs(11)
    labels = [[n % 3] for n in range(11)]
    expected = tiny().localize(images, labels)
    first, second = tiny(), tiny()
    assert first.compile_into(file, streams=2) is None
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt2"]
    monkeypatch.setattr(pixel_network, "compile_features", None)  # the second one must not want it
    assert second.compile_into(file) is None
    for localizer in (first, second):
        counts = eager_counts(localizer)
        rows = localizer.localize([*images, *images[:2]], [*labels, *labels[:2]])
        # Batches of 4, 4, 4 and 1: three of them compiled.
        assert counts == [1]
        assert len(rows) == 13
        for row, other in zip(rows, [*expected, *expected[:2]], strict=True):
            assert row.labels.tolist() == other.labels.tolist()
            np.testing.assert_allclose(row.scores, other.scores, rtol=1e-4)
            np.testing.assert_allclose(row.cams.astype(float), other.cams.astype(float), rtol=2e-3, atol=1e-4)
            assert [t.label for t in row.targets] == [t.label for t in other.targets]
        counts.clear()
        # Three of four are filled up, two are not.
        assert [row.labels.tolist() for row in localizer.localize(images[:3])] == [
            row.labels.tolist() for row in expected[:3]
        ]
        assert counts == []
        localizer.localize(images[:2])
        assert counts == [2]


def eager_counts(localizer: Localizer) -> list[int]:
    """The sizes of the batches that went through the network that is not compiled."""
    counts: list[int] = []
    features = localizer._pixel_network.network.features
    features.register_forward_pre_hook(lambda module, given: counts.append(len(given[0])))
    return counts


def test_a_network_that_cannot_be_compiled_still_works(tmp_path, monkeypatch):
    def fails(file, network, pixels_BCHW):
        raise RuntimeError("Exception from src/core.cpp:217:\n\nno such layer\nlook here and there")

    images = photographs(4)
    localizer, expected = tiny(), tiny().localize(images)
    monkeypatch.setattr(pixel_network, "compile_features", fails)
    assert localizer.compile_into(tmp_path / "tiny.pt2") == "no such layer"
    for row, other in zip(localizer.localize(images), expected, strict=True):
        np.testing.assert_array_equal(row.cams, other.cams)


def test_a_compiled_network_with_other_logits_is_not_used(tmp_path, monkeypatch):
    localizer = tiny()

    def wrong(pixels_BCHW):
        return (localizer._pixel_network(pixels_BCHW)[0].flip(1),)

    monkeypatch.setattr(pixel_network, "compile_features", lambda file, network, pixels_BCHW: file.touch())
    monkeypatch.setattr(pixel_network, "load_compiled_features", lambda file, **options: wrong)
    why = localizer.compile_into(tmp_path / "tiny.pt2")
    assert why is not None
    assert "its logits would differ by" in why
    assert localizer._pixel_network._compiled is None


def test_a_file_that_does_not_load_gives_a_reason(tmp_path):
    file = tmp_path / "tiny.pt2"
    file.write_bytes(b"no archive")
    assert tiny().compile_into(file)


def test_seconds_per_image_is_a_time():
    assert 0 < tiny().seconds_per_image() < 10


def test_the_next_batch_does_not_overwrite_the_last_result(tmp_path):
    localizer, (one, other) = tiny(), (torch.full((4, 3, 32, 32), n, dtype=torch.uint8) for n in (20, 200))
    assert localizer.compile_into(tmp_path / "tiny.pt2") is None
    look = localizer._pixel_network.features_and_logits
    features_BCHW = look(one)[0]
    before = features_BCHW.clone()
    assert not torch.equal(look(other)[0], before)
    assert torch.equal(features_BCHW, before)


@pytest.mark.skipif("_fp16" in Path("/proc/cpuinfo").read_text(), reason="it multiplies float16")
def test_an_unsupported_precision_is_not_replaced_by_another(tmp_path):
    why = Localizer(tiny_package(), device="cpu", precision="float16").compile_into(tmp_path / "tiny.pt2")
    assert why is not None
    assert why.startswith("compiled for this processor it would compute in ")


def test_the_compiler_opens_no_connection(tmp_path):
    """OpenVINO reports its import and every conversion to a server, unless that is blocked."""
    script = """
import sys
sys.addaudithook(lambda event, _: event.startswith("socket.") and print(event))
from pathlib import Path
from inference.test_compile import tiny
assert tiny().compile_into(Path(sys.argv[1])) is None
"""
    assert output_of(script, tmp_path / "tiny.pt2") == ""


def test_signals_are_handled_after_compiled_networks_are_deleted(tmp_path):
    """OpenVINO changes the signal stack of a thread and can leave one that is no longer mapped."""
    script = """
import signal, sys
from pathlib import Path
from inference.test_compile import tiny
first, second = tiny(), tiny()
assert first.compile_into(Path(sys.argv[1])) is None
assert second.compile_into(Path(sys.argv[1])) is None
del first
del second
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    assert output_of(script, tmp_path / "tiny.pt2") == "handled\n"


def output_of(script: str, file: Path) -> str:
    """Run a script in a process of its own, which has to succeed, and return its output."""
    command = [sys.executable, "-W", "ignore", "-c", script, str(file)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchs_own_compiler_leaves_nothing_behind(tmp_path, monkeypatch):
    """AOTInductor compiles for the CPU as well as for a GPU."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network, pixels_BCHW = tiny()._pixel_network, torch.full((4, 3, 32, 32), 9, dtype=torch.uint8)
    file = tmp_path / "tiny.pt2"
    with torch.inference_mode():
        compile_for_cuda(file, network, pixels_BCHW)
        compiled = load_for_cuda(file, 1)
        torch.testing.assert_close(compiled(pixels_BCHW), network(pixels_BCHW), rtol=1e-4, atol=1e-4)
    assert list(tmp_path.rglob("*.so")) == []
