"""The sums of a foreground head over images: which maps they are made of, and any split over shards."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from camworker.boxes.refine import refined_values
from camworker.errors import NetworkError
from camworker.images.decode import decode, network_input
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.networks.foreground import ForegroundSums, fit_head
from camworker.networks.package import NetworkPackage
from camworker.refinement import Refinement
from camworker.training.foreground_sums import (
    CollectedForeground,
    ForegroundCollector,
    fit_foreground,
    require_taps,
)
from support.factories import tiny_package
from support.tapped_network import SIDE, discs, tapped_package

COUNT = 104


@pytest.fixture(scope="module")
def package() -> NetworkPackage:
    return tapped_package()


@pytest.fixture(scope="module")
def items(package: NetworkPackage, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = discs(tmp_path_factory.mktemp("discs"), COUNT)
    (folder / "0050b.png").write_bytes(b"not a picture")
    return open_source(str(folder), package.classes).items


def collect(package: NetworkPackage, items: pa.Table, batch_size: int = 8) -> CollectedForeground:
    return ForegroundCollector(package, batch_size=batch_size).collect(items, ReadPolicy(), decoders=2)


@pytest.fixture(scope="module")
def once(package: NetworkPackage, items: pa.Table) -> CollectedForeground:
    return collect(package, items)


def with_labels(items: pa.Table, labels: list[list[int]]) -> pa.Table:
    column = items.schema.get_field_index("labels")
    return items.set_column(column, items.schema.field(column), pa.array(labels, pa.list_(pa.int32())))


def test_failed_images_are_counted_and_left_out(once: CollectedForeground) -> None:
    assert once.images == Counter(ok=COUNT, unsupported=1)
    assert (once.sums.images, once.sums.positions) == (COUNT, COUNT * 16 * 16)
    assert (once.sums.fine, once.sums.deep) == (5, 6)
    assert sum(once.sums.class_counts.values()) == COUNT


@pytest.mark.parametrize("size", [8, 24, 56])
def test_any_split_over_shards_gives_the_same_head(
    package: NetworkPackage, items: pa.Table, once: CollectedForeground, size: int
) -> None:
    collector = ForegroundCollector(package, batch_size=8)
    shards = [
        collector.collect(items.slice(start, size), ReadPolicy(), decoders=2).sums
        for start in range(0, items.num_rows, size)
    ]
    merged = sum(shards[::-1], ForegroundSums.zero(5, 6))
    one, other = fit_head(once.sums), fit_head(merged)
    np.testing.assert_allclose(other.fine_C, one.fine_C, rtol=0, atol=1e-10)
    np.testing.assert_allclose(other.deep_C, one.deep_C, rtol=0, atol=1e-10)
    assert other.bias == pytest.approx(one.bias, abs=1e-10)
    assert merged.class_counts == once.sums.class_counts


def test_fitted_twice_is_equal_bit_for_bit(
    package: NetworkPackage, items: pa.Table, once: CollectedForeground
) -> None:
    again = fit_foreground(package, collect(package, items).sums, [])
    assert again.to_bytes() == fit_foreground(package, once.sums, []).to_bytes()
    assert again.taps == package.network.taps
    assert again.weights == package.fingerprint


def test_the_map_is_that_of_the_known_classes_or_of_the_best(
    package: NetworkPackage, items: pa.Table
) -> None:
    """Of several known classes, the maximum of their maps."""
    labels = [[], [3], [4, 7]]
    found = collect(package, with_labels(items.slice(0, 3), labels))

    network = package.network
    expected, names = ForegroundSums.zero(5, 6), Counter[str]()
    for uri, own in zip(items["uri"].to_pylist(), labels, strict=False):
        pixels_CHW = decode(Path(uri).read_bytes())
        frame_CHW = network_input(
            pixels_CHW, ForegroundCollector(package).localizer.frame_spec.frame(SIDE, SIDE)
        )
        images_BCHW = (frame_CHW[None].float() / 255 - 0.5) / 0.2
        with torch.inference_mode():
            features_BCHW, fine_BCHW, deep_BCHW = network.tapped_features(images_BCHW)
            classes = own or [int(network.logits(features_BCHW).argmax())]
            cams_MHW = torch.einsum("kc,chw->khw", network.weights_KC[classes], features_BCHW[0]).numpy()
        images_M, ridge = np.zeros(len(classes), int), Refinement.of("ridge", "softmax")
        maps_MHW = refined_values(cams_MHW, images_M, fine_BCHW.numpy(), None, ridge, None)
        if maps_MHW.any():
            names.update(f"class {label}" for label in classes)
            expected += ForegroundSums.of_image(
                fine_BCHW[0].numpy(), deep_BCHW[0].numpy(), maps_MHW.max(0), [f"class {n}" for n in classes]
            )
    assert found.sums.images == expected.images
    assert found.sums.class_counts == names
    np.testing.assert_allclose(found.sums.gram_DD, expected.gram_DD, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.sums.moments_D, expected.moments_D, rtol=1e-5, atol=1e-5)


def test_an_image_without_a_positive_value_in_its_map_is_left_out(
    package: NetworkPackage, items: pa.Table
) -> None:
    weight = package.network.classifier.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.copy_(-weight.abs())  # the features are not negative
        found = collect(package, items.slice(0, 3))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert found.images == Counter(no_map=3)
    assert (found.sums.images, found.sums.positions, found.sums.class_counts) == (0, 0, {})


def test_a_network_without_taps_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"^tiny cannot have a foreground head: "):
        require_taps(tiny_package())
