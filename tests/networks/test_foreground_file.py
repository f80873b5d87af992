"""foreground.safetensors: the round trip, and what is refused when it is read."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from camworker.errors import NetworkError
from camworker.networks.foreground import ForegroundSums, fit_head
from camworker.networks.foreground_file import (
    FittedForeground,
    parse_foreground,
    read_foreground,
    write_foreground,
)
from camworker.networks.taps import Tap, Taps

TAPS = Taps(Tap("body.1", 5, 8), Tap("body.2", 3, 16))


def fitted(taps: Taps = TAPS) -> FittedForeground:
    random = np.random.default_rng(0)
    fine, deep = taps.fine.channels, taps.deep.channels if taps.deep else 0
    sums = ForegroundSums.zero(fine, deep)
    for number in range(100):
        maps = [random.normal(size=(count, 4, 4)).astype("f4") for count in (fine, deep)]
        sums += ForegroundSums.of_image(
            maps[0], maps[1] if deep else None, random.random((4, 4), "f4"), [f"class {number % 3}"]
        )
    fits = ({"input": "photos", "images": 100, "größe": [1.5, None]},)
    return FittedForeground(fit_head(sums), sums, taps, "0123", fits)


@pytest.mark.parametrize("taps", [TAPS, Taps(TAPS.fine, None)])
def test_round_trip(taps: Taps) -> None:
    before = fitted(taps)
    after = parse_foreground(before.to_bytes(), "file")
    assert after.to_bytes() == before.to_bytes()
    assert after.head.fingerprint == before.head.fingerprint
    assert (after.taps, after.weights, after.fits) == (before.taps, before.weights, before.fits)
    assert after.sums.class_counts == before.sums.class_counts
    assert (after.sums.fine, after.sums.images, after.sums.positions) == (5, 100, 1600)
    assert fit_head(after.sums).fingerprint == before.head.fingerprint


def damaged(change: Callable[[dict[str, np.ndarray], dict], object]) -> bytes:
    data = fitted().to_bytes()
    tensors = safetensors.numpy.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described = json.loads(header["__metadata__"]["camworker"])
    change(tensors, described)
    return safetensors.numpy.save(tensors, {"camworker": json.dumps(described)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors, _: tensors["head.fine"].__setitem__(0, np.nan), "not finite"),
        (lambda tensors, _: tensors["sums.gram"].__setitem__((0, 0), np.inf), "sums.gram has .* not finite"),
        (lambda tensors, _: tensors.update({"head.deep": np.zeros(4)}), "head.deep is .*4.* and not .*3"),
        (lambda tensors, _: tensors.update({"sums.gram": np.zeros((9, 8))}), "sums.gram is .*9, 8"),
        (lambda tensors, _: tensors.pop("sums.moments"), "sums.moments"),
        (lambda _, described: described["taps"]["fine"].update(channels=6), "head.fine is .*5.* and not .*6"),
        (lambda _, described: described.pop("taps"), "taps"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    change: Callable[[dict[str, np.ndarray], dict], object], reason: str
) -> None:
    with pytest.raises(NetworkError, match=reason) as caught:
        parse_foreground(damaged(change), "there.safetensors")
    assert str(caught.value).startswith("there.safetensors is not a foreground head: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"12345678", b"\xff" * 100, fitted().to_bytes()[:-1]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(NetworkError, match="is not a foreground head"):
        parse_foreground(data, "file")


def test_other_taps_are_refused() -> None:
    head = fitted()
    head.check_fits(TAPS, "tiny", "file")
    for taps, other in (
        (replace(TAPS, deep=Tap("body.3", 3, 16)), r"body\.3 \(3 channels, stride 16\)$"),
        (replace(TAPS, deep=None), r"tiny has body\.1 \(5 channels, stride 8\)$"),
        (None, "tiny has no map at stride 8$"),
    ):
        with pytest.raises(NetworkError, match=r"^file: the foreground head reads body\.1 .*" + other):
            head.check_fits(taps, "tiny", "file")


def test_writing_is_atomic_and_replaces_only_on_request(tmp_path: Path) -> None:
    file = tmp_path / "new" / "head.safetensors"
    head, other = fitted(), replace(fitted(), weights="4567")
    write_foreground(head, str(file), replace=False)
    assert read_foreground(str(file)).weights == "0123"
    with pytest.raises(NetworkError, match=f"{re.escape(str(file))} exists already"):
        write_foreground(other, str(file), replace=False)
    assert read_foreground(str(file)).weights == "0123"
    write_foreground(other, str(file), replace=True)
    assert read_foreground(str(file)).weights == "4567"
    assert [path.name for path in file.parent.iterdir()] == ["head.safetensors"]
    with pytest.raises(NetworkError, match="cannot be read"):
        read_foreground(str(tmp_path / "missing"))
