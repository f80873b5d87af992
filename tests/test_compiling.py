"""Compiling: when it repays, the same answers for batches of any size, and what is kept in the file."""

import numpy as np
import pytest
from conftest import encode, tiny_package

from camworker import pixels
from camworker.compiling import repays
from camworker.localizer import Localizer


@pytest.mark.parametrize(
    ("images", "seconds_each", "compiled", "expected"),
    [
        (50, 0.005, False, False),
        (50, 0.005, True, False),
        (10_000, 0.005, False, False),  # saves 12.5 s of the 30 s that compiling takes
        (10_000, 0.005, True, True),
        (24_001, 0.005, False, True),
        (24_000, 0.005, False, False),
        (1_000_000, 0.0001, False, False),
        (0, 1.0, True, False),
    ],
)
def test_it_repays_when_it_saves_more_than_it_takes(images, seconds_each, compiled, expected):
    assert repays(images, seconds_each, compiled=compiled) is expected


def photographs(count: int) -> list[bytes]:
    rng = np.random.default_rng(3)
    return [encode(rng.integers(0, 256, (40, 48, 3), np.uint8), "PNG") for _ in range(count)]


def tiny() -> Localizer:
    return Localizer(tiny_package(), device="cpu", precision="float32", batch_size=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_gives_the_same_rows_and_the_next_one_loads_them(tmp_path, monkeypatch):
    file, images = tmp_path / "tiny.pt2", photographs(11)
    labels = [[n % 3] for n in range(11)]
    expected = tiny().localize(images, labels)
    first, second = tiny(), tiny()
    assert first.compile_into(file, streams=2) is None
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt2"]
    monkeypatch.setattr(pixels, "compile_into", None)  # the second one must not want it
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
    """How many images each batch had that went through the network as it is written."""
    counts: list[int] = []
    features = localizer._pixel_network.network.features
    features.register_forward_pre_hook(lambda module, given: counts.append(len(given[0])))
    return counts


def test_a_network_that_cannot_be_compiled_stays_as_it_is(tmp_path, monkeypatch):
    def fails(file, network, pixels_BCHW):
        raise RuntimeError("no C++ compiler was found\nlook here and there")

    images = photographs(4)
    localizer, expected = tiny(), tiny().localize(images)
    monkeypatch.setattr(pixels, "compile_into", fails)
    assert localizer.compile_into(tmp_path / "tiny.pt2") == "no C++ compiler was found"
    for row, other in zip(localizer.localize(images), expected, strict=True):
        np.testing.assert_array_equal(row.cams, other.cams)


def test_what_is_compiled_has_to_answer_as_the_network_does(tmp_path, monkeypatch):
    localizer = tiny()

    def wrong(pixels_BCHW):
        features_BCHW, logits_BK = localizer._pixel_network(pixels_BCHW)
        return features_BCHW, logits_BK.flip(1)

    monkeypatch.setattr(pixels, "compile_into", lambda file, network, pixels_BCHW: file.touch())
    monkeypatch.setattr(pixels, "load_compiled", lambda file, streams: wrong)
    why = localizer.compile_into(tmp_path / "tiny.pt2")
    assert why is not None
    assert "its logits would differ by" in why
    assert localizer._pixel_network._compiled is None


def test_a_file_that_does_not_load_is_told(tmp_path):
    file = tmp_path / "tiny.pt2"
    file.write_bytes(b"no archive")
    assert tiny().compile_into(file)


def test_seconds_each_is_a_time():
    assert 0 < tiny().seconds_each() < 10
