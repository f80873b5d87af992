"""Localizer: rows of photographs, maps whose mean is the logit, targets, failures, batches."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from skimage import data

from camworker.boxes.refine import decode_refined
from camworker.boxes.rules import boxes_from_cam
from camworker.frame import Frame
from camworker.inference.localizer import Localizer
from camworker.inference.predictions import FailedPrediction, Prediction
from camworker.networks.package import load
from camworker.refinement import Refinement
from camworker.schemas import CamShape
from support.factories import encode
from support.row_tables import corners

CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}
EGYPTIAN_CAT = 285


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """A cat, an astronaut in portrait format, coffee, and a camera man in gray."""
    return [
        encode(data.chelsea(), "PNG"),
        encode(data.astronaut()[:, 100:400], "JPEG", quality=90),
        encode(data.coffee(), "JPEG", quality=90),
        encode(data.camera(), "PNG"),
    ]


SIZES = [(451, 300), (300, 512), (600, 400), (512, 512)]


@pytest.fixture(scope="module", params=["squash", "crop"])
def localizer(request, default_package) -> Localizer:
    """The rows of the preset of the paper: boxes by cam20, from raw maps."""
    return Localizer(default_package, preset="paper", device="cpu", precision="float32", resize=request.param)


@pytest.fixture(scope="module")
def rows(localizer, photos) -> list[Prediction]:
    return localizer.localize(photos, [[EGYPTIAN_CAT], [], [504, 967, 504], [0]])


def test_fields_of_a_row(localizer, rows):
    names = localizer.package.classes.names
    assert [(row.width, row.height) for row in rows] == SIZES
    for row in rows:
        assert (row.status, row.error) == ("ok", None)
        assert row.labels.shape == row.scores.shape == (5,)
        assert (row.labels.dtype, row.scores.dtype) == (np.int32, np.float32)
        assert len(set(row.labels.tolist())) == 5
        assert row.names == tuple(names[label] for label in row.labels)
        assert (np.diff(row.scores) <= 0).all()
        assert 0 < row.scores.min() < row.scores.sum() <= 1 + 1e-6
        assert (row.cams.dtype, row.cams.shape) == (np.float16, (5, 7, 7))
        assert row.boxes["rank"].tolist() == [1, 2, 3, 4, 5]
        assert row.boxes["label"].tolist() == row.labels.tolist()
        assert row.boxes["score"].tolist() == row.scores.tolist()
        boxes = corners(row.boxes)
        assert boxes.dtype == np.float32
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= [row.width, row.height]).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert min(row.cams.min() for row in rows) < 0  # signed and raw


def test_the_photographs_are_recognised(rows):
    assert CATS & set(rows[0].names)
    assert "espresso" in rows[2].names
    assert rows[0].names != rows[1].names


def test_the_box_of_the_cat_contains_its_face(rows):
    # Her eyes, by hand; the box of a cat class has to hold both.
    ((xmin, ymin, xmax, ymax),) = corners(rows[0].targets[0].boxes)
    assert rows[0].names[0] in CATS
    for x, y in ((180, 110), (265, 130)):
        assert xmin < x < xmax
        assert ymin < y < ymax


def test_stored_boxes_come_from_stored_maps(localizer, rows):
    for row in rows:
        frame = Frame(row.width, row.height, 224, localizer.frame_spec.resize)
        again = [boxes_from_cam(cam, frame, "cam20") for cam in row.cams]
        np.testing.assert_array_equal(np.concatenate(again), corners(row.boxes))
        for target in row.targets:
            np.testing.assert_array_equal(boxes_from_cam(target.cam, frame, "cam20"), corners(target.boxes))


def test_the_default_preset_tightens_the_box_around_the_cat(default_package, photos):
    localizer = Localizer(default_package, device="cpu", precision="float32")
    assert localizer.settings.refinement == Refinement.of("foreground", "softmax")
    assert localizer.refined_shape == CamShape(1, 28, 28)
    (row,) = localizer.localize(photos[:1], [[EGYPTIAN_CAT]])
    ((xmin, ymin, xmax, ymax),) = corners(row.targets[0].boxes)
    for x, y in ((180, 110), (265, 130)):  # her eyes
        assert xmin < x < xmax
        assert ymin < y < ymax
    # Around her head and body, by hand: the box of the raw map is larger by a third.
    assert (xmax - xmin) * (ymax - ymin) < 0.75 * 451 * 300
    frame = Frame(row.width, row.height, 224)
    for refined, boxes in ((row.refined[0], row.boxes[:1]), (row.targets[0].refined, row.targets[0].boxes)):
        box = boxes_from_cam(decode_refined(refined), frame, "fine:0.625")
        np.testing.assert_array_equal(box, corners(boxes))


def test_maps_and_bias_are_the_logits(localizer, photos):
    batch = [localizer.preprocess(photo) for photo in photos]
    maps = localizer.forward(batch, [[3], [], [999, 1], []])
    assert maps.target_counts_B.tolist() == [1, 0, 2, 0]
    assert maps.targets.labels_M.tolist() == [3, 1, 999]
    images = torch.stack([image.pixels_CHW for image in batch]).float() / 255
    with torch.inference_mode():
        logits_BK = localizer.package.network.model((images - 0.5) / 0.5).numpy()
    np.testing.assert_array_equal(maps.best.labels_M[::5], logits_BK.argmax(1))
    probabilities_BK = np.exp(logits_BK) / np.exp(logits_BK).sum(1, keepdims=True)
    bias = localizer.package.network.bias_K.detach().numpy()
    for classes, image_M in ((maps.best, np.repeat(range(4), 5)), (maps.targets, [0, 2, 2])):
        assert classes.maps_Mhw.dtype == classes.scores_M.dtype == np.float32
        means = classes.maps_Mhw.mean((1, 2)) + bias[classes.labels_M]
        np.testing.assert_allclose(means, logits_BK[image_M, classes.labels_M], atol=1e-3)
        np.testing.assert_allclose(classes.scores_M, probabilities_BK[image_M, classes.labels_M], atol=1e-4)


def test_targets(rows):
    assert [[target.label for target in row.targets] for row in rows] == [[285], [], [504, 967], [0]]
    for row in rows:
        for target in row.targets:
            assert (target.cam.dtype, target.cam.shape) == (np.float16, (7, 7))
            assert target.boxes.dtype.names == ("label", "score", "xmin", "ymin", "xmax", "ymax", "fallback")
            assert target.boxes["label"].tolist() == [target.label]
            assert target.boxes["score"].tolist() == [np.float32(target.score)]
            assert 0 < target.score < 1


def test_a_target_among_the_best_has_the_same_map(rows):
    compared = 0
    for row in rows:
        for target in row.targets:
            for rank in np.flatnonzero(row.labels == target.label):
                # A matrix product may round by position: the last bit of a float16.
                np.testing.assert_allclose(target.cam, row.cams[rank], rtol=2**-10, atol=1e-4)
                np.testing.assert_allclose(corners(target.boxes)[0], corners(row.boxes)[rank], atol=5)
                assert target.score == row.scores[rank]
                compared += 1
    assert compared >= 2


def test_targets_of_other_images_have_no_effect(localizer, photos):
    (alone,) = localizer.localize(photos[:1], [[7]])
    beside = localizer.localize(photos[:2], [[7], [30, 20, 10]])
    assert [target.label for target in beside[0].targets] == [7]
    assert [target.label for target in beside[1].targets] == [10, 20, 30]
    np.testing.assert_allclose(beside[0].targets[0].cam, alone.targets[0].cam, atol=0.02)


def test_failures_keep_their_positions(localizer, photos):
    images = [b"", photos[0], b"<html>", photos[2][:5000], photos[2]]
    rows = localizer.localize(images, [[1], [2], [3], [4], [5]])
    assert [row.status for row in rows] == ["decode_error", "ok", "unsupported", "decode_error", "ok"]
    assert [[target.label for target in row.targets] for row in rows] == [[], [2], [], [], [5]]
    assert CATS & set(rows[1].names)
    assert "espresso" in rows[4].names
    assert {field.name for field in fields(FailedPrediction)} == {field.name for field in fields(Prediction)}
    failed = rows[0]
    assert isinstance(failed, FailedPrediction)
    assert failed.error
    assert failed.cams is failed.width is failed.height is None
    assert len(failed.labels) == len(failed.names) == len(failed.scores) == len(failed.boxes) == 0


def test_the_batch_size_does_not_matter(default_package, rows, photos, localizer):
    options = {"preset": "paper", "device": "cpu", "precision": "float32"}
    options["resize"] = localizer.frame_spec.resize
    single = Localizer(default_package, **options, batch_size=1).localize(photos)
    # A failure between them shifts places inside a batch.
    threes = Localizer(default_package, **options, batch_size=3).localize([photos[0], b"", *photos[1:]])
    del threes[1]
    for row, *others in zip(rows, single, threes, strict=True):
        for other in others:
            assert row.names == other.names
            np.testing.assert_allclose(row.scores, other.scores, atol=1e-4)
            np.testing.assert_allclose(row.cams, other.cams, atol=0.02, rtol=2e-3)
            np.testing.assert_allclose(corners(row.boxes), corners(other.boxes), atol=5)


def test_bfloat16_is_close_and_map_means_are_the_logits(photos):
    package = load()
    exact = Localizer(load(), device="cpu", precision="float32").localize(photos[:1])[0]
    localizer = Localizer(package, device="cpu", precision="bfloat16")
    (row,) = localizer.localize(photos[:1])
    assert row.labels[0] == exact.labels[0]
    assert np.corrcoef(row.cams[0].ravel(), exact.cams[0].ravel())[0, 1] > 0.98
    image = localizer.preprocess(photos[0])
    best = localizer.forward([image], [[]]).best
    logits_K = localizer.features([image])[1][0].numpy()
    means = best.maps_Mhw.mean((1, 2)) + package.network.bias_K.detach().numpy()[best.labels_M]
    np.testing.assert_allclose(means, logits_K[best.labels_M], atol=1e-3)
