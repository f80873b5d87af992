"""Localizer on a tiny network: options, scoring, maps that overflow, and packages that do not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from camworker.boxes.rules import boxes_from_cam
from camworker.errors import UsageError
from camworker.frame import Frame
from camworker.images.decode import PreprocessedImage
from camworker.inference.cam_network import Maps, ScoredMaps
from camworker.inference.localizer import Localizer
from support.factories import encode, tiny_package
from support.row_tables import corners


def colors(count: int) -> list[bytes]:
    rng = np.random.default_rng(5)
    return [encode(rng.integers(0, 256, (24, 40, 3), np.uint8), "PNG") for _ in range(count)]


def tiny(**options) -> Localizer:
    return Localizer(tiny_package(), device="cpu", precision="float32", **options)


def test_top_k_is_at_most_the_classes():
    (row,) = tiny(top_k=9).localize(colors(1))
    assert sorted(row.labels.tolist()) == [0, 1, 2]
    assert row.cams.shape == (3, 8, 4)
    assert row.scores.sum() == pytest.approx(1)
    (best,) = tiny(top_k=1).localize(colors(1), [[0, 1, 2]])
    assert best.labels.tolist() == row.labels[:1].tolist()
    assert best.boxes.shape == (1,)
    assert [target.label for target in best.targets] == [0, 1, 2]


def test_labels_follow_their_images_into_later_batches():
    rows = tiny(batch_size=2).localize(colors(5), [[0], [], [1, 2], [2], [1]])
    assert [[target.label for target in row.targets] for row in rows] == [[0], [], [1, 2], [2], [1]]


def test_boxes_are_made_of_the_rounded_maps(tiny_localizer):
    # 0.20001 is above a fifth, and what float16 makes of it below: the stored map ends half way down.
    maps_BNHW = np.full((1, 3, 8, 4), 0.20001, np.float32)
    maps_BNHW[:, :, :4] = 1
    best = ScoredMaps(np.arange(3, dtype=np.int32), np.ones(3, np.float32), maps_BNHW[0])
    targets = ScoredMaps(best.labels_M[:0], best.scores_M[:0], best.maps_Mhw[:0])
    maps = Maps(best, targets, np.zeros(1, np.int64))
    frame = Frame(320, 320, 32)
    image = PreprocessedImage(torch.zeros(3, 32, 32, dtype=torch.uint8), frame)
    (row,) = tiny_localizer.postprocess(maps, [image]).rows()
    assert boxes_from_cam(maps_BNHW[0, 0], frame).tolist() == [[0, 0, 320, 320]]
    assert corners(row.boxes).tolist() == [boxes_from_cam(row.cams[0], frame)[0].tolist()] * 3
    assert (row.boxes["ymax"] < 200).all()


def test_sigmoid_scoring():
    package = replace(tiny_package(), scoring="sigmoid")
    localizer = Localizer(package, device="cpu", precision="float32", top_k=3)
    (photo,) = colors(1)
    image = localizer.preprocess(photo)
    maps = localizer.forward([image], [[1]])
    logits_K = localizer.features([image])[1][0].numpy()
    for classes in (maps.best, maps.targets):
        expected = 1 / (1 + np.exp(-logits_K[classes.labels_M]))
        np.testing.assert_allclose(classes.scores_M, expected, rtol=1e-5)
    (row,) = localizer.localize([photo])
    np.testing.assert_array_equal(row.scores, maps.best.scores_M)
    assert abs(row.scores.sum() - 1) > 0.1  # not shares of one


def test_two_localizers_of_one_package():
    package = tiny_package()
    first = Localizer(package, device="cpu", precision="bfloat16")
    second = Localizer(package, device="cpu", precision="bfloat16")
    images = colors(2)
    for one, other in zip(first.localize(images), second.localize(images), strict=True):
        np.testing.assert_array_equal(one.cams, other.cams)


def test_a_package_is_not_changed():
    package = tiny_package()
    before = {key: tensor.clone() for key, tensor in package.network.state_dict().items()}
    Localizer(package, device="cpu", precision="bfloat16")
    for key, tensor in package.network.state_dict().items():
        assert tensor.dtype == before[key].dtype
        assert torch.equal(tensor, before[key])


def test_only_failures_and_no_images(tiny_localizer):
    rows = tiny_localizer.localize([b"", b"x"], [[], [1]])
    assert [row.status for row in rows] == ["decode_error", "unsupported"]
    assert tiny_localizer.localize([]) == []
    with pytest.raises(UsageError, match="1 lists of labels for 2 images"):
        tiny_localizer.localize([b"", b""], [[]])


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"box_rule": "cam21"},
        {"precision": "float8"},
        {"input_size": 12},
        {"input_size": -4},
        {"resize": "pad"},
        {"batch_size": -1},
    ],
    ids=str,
)
def test_options_that_cannot_work(options):
    with pytest.raises(UsageError):
        Localizer(tiny_package(), device="cpu", **({"precision": "float32"} | options))


@pytest.mark.parametrize("label", [3, -1])
def test_labels_that_are_no_classes_of_the_network(tiny_localizer, label):
    with pytest.raises(UsageError):
        tiny_localizer.localize(colors(1), [[label]])
