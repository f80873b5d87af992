"""Maps that float16 cannot hold: the image is localized in float32, or its row says so. Others stay."""

import numpy as np
import pytest
import torch

from camworker.inference.localizer import Localizer
from support.factories import photograph, plan_of, read, run, tiny_package

END = 65520.0  # from here on, float16 rounds to infinity


def scaled_package(weights=1.0, first_layer=1.0):
    package = tiny_package()
    with torch.no_grad():
        package.network.classifier.weight *= weights
        package.network.model["body"][0].weight *= first_layer
        package.network.model["body"][0].bias *= first_layer
    return package


def localizer_of(package, precision="float32", **options):
    return Localizer(package, device="cpu", precision=precision, batch_size=4, **options)


def largest(row):
    return max(np.abs(cams.astype(np.float64)).max() for cams in (row.cams, *(t.cam for t in row.targets)))


@pytest.fixture(scope="module")
def images():
    return [photograph(seed) for seed in range(6)]


def test_only_the_image_that_overflows_fails(images):
    labels = [[0, 2], [1], [], [2], [0], []]
    rows = localizer_of(tiny_package()).localize(images, labels)
    peaks = np.array([largest(row) for row in rows])
    worst = int(peaks.argmax())
    second = np.sort(peaks)[-2]
    scale = END / np.sqrt(peaks[worst] * second)  # between the two largest
    found = localizer_of(scaled_package(weights=scale)).localize(images, labels)
    statuses = ["ok"] * 6
    statuses[worst] = "map_overflow"
    assert [row.status for row in found] == statuses
    value = float(found[worst].error.split()[5].rstrip(","))
    assert found[worst].error.endswith(", which float16 cannot represent")
    assert value == pytest.approx(peaks[worst] * scale, rel=1e-2)
    for row, one in zip(found, rows, strict=True):
        if row.status == "ok":
            assert sorted(row.labels) == sorted(one.labels)
            assert [target.label for target in row.targets] == [target.label for target in one.targets]
            assert largest(row) == pytest.approx(largest(one) * scale, rel=1e-2)
            assert len(row.boxes) == 3


def test_a_map_of_a_known_label_can_overflow_alone(images):
    package = tiny_package()
    with torch.no_grad():
        package.network.classifier.weight[1] *= -1e7
        package.network.classifier.bias[1] = -1e9  # so that the class is never ranked
    rows = localizer_of(package, top_k=2).localize(images[:2], [[1], [0]])
    assert [row.status for row in rows] == ["map_overflow", "ok"]


def test_features_that_overflow_in_float16_are_computed_in_float32(images):
    package = scaled_package(weights=1e-5, first_layer=1e6)
    exact = localizer_of(package).localize(images, [[1]] * 6)
    half = localizer_of(package, "float16")
    outputs = half.forward([half.preprocess(image) for image in images[:4]], [[1]] * 4)
    assert not np.isfinite(outputs.largest_values()).any()
    for row, other in zip(half.localize(images, [[1]] * 6), exact, strict=True):
        assert row.status == "ok"
        np.testing.assert_array_equal(row.cams, other.cams)
        np.testing.assert_array_equal(row.scores, other.scores)
        np.testing.assert_array_equal(row.targets[0].cam, other.targets[0].cam)


def test_what_overflows_in_float32_too_fails(images):
    rows = localizer_of(scaled_package(weights=1e9), "bfloat16").localize(images)
    assert [row.status for row in rows] == ["map_overflow"] * 6


def test_a_shard_with_such_images_is_committed(ledger, folder):
    result = run(ledger, plan_of(ledger, folder), localizer_of(scaled_package(weights=1e9)))
    assert result.images == {"map_overflow": 11}
    for row in read(ledger).to_pylist():
        assert (row["cams"], row["labels"], row["boxes"], row["targets"]) == (None, [], [], [])
        assert "float16" in row["error"]
