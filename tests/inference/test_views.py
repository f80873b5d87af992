"""Views of an image: merged maps computed by hand, mirrored photographs, and a second ten-crop."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from camworker.boxes.rules import boxes_from_map
from camworker.cam import View, merge_views, views_of
from camworker.errors import UsageError
from camworker.frame import Frame, frame_size
from camworker.images.decode import PreprocessedImage
from camworker.inference.localizer import Localizer
from support.factories import encode, tiny_package
from support.row_tables import corners


def localizer_of(package, **options):
    return Localizer(package, device="cpu", precision="float32", **options)


def test_where_the_views_are():
    assert views_of("single", 224) == (View(0, 0, False),)
    assert views_of("flip", 224) == (View(0, 0, False), View(0, 0, True))
    crops = [(0, 0), (32, 0), (0, 32), (32, 32), (16, 16)]
    assert views_of("ten-crop", 224) == tuple(View(x, y, m) for m in (False, True) for x, y in crops)
    assert [frame_size(224, views) for views in ("single", "flip", "ten-crop")] == [224, 224, 256]
    assert frame_size(448, "ten-crop") == 512
    assert frame_size(160, "ten-crop") == 183  # 182.86


def test_a_view_is_a_crop_and_its_mirror_image():
    images_BCHW = torch.arange(16.0).view(1, 1, 4, 4)
    assert View(1, 2, False).crop(images_BCHW, 2).tolist() == [[[[9, 10], [13, 14]]]]
    assert View(1, 2, True).crop(images_BCHW, 2).tolist() == [[[[10, 9], [14, 13]]]]


def test_flip_by_hand():
    maps = [torch.tensor([[[[1.0, 2, 4], [0, -2, 6]]]]), torch.tensor([[[[8.0, 0, 3], [1, 2, -6]]]])]
    merged = merge_views(maps, views_of("flip", 24), 24)
    # The second one is of the mirrored image: 3 0 8 and -6 2 1 in the first one's places.
    assert merged.tolist() == [[[[2, 1, 6], [-3, 0, 3.5]]]]
    assert merge_views(maps[:1], views_of("single", 24), 24).tolist() == maps[0].tolist()


def test_ten_crop_by_hand():
    # Crops of 28 in a square of 32, whose 32 cells are its pixels; corners at 0 and 4, the centre at 2.
    views = views_of("ten-crop", 28)
    assert max(view.x for view in views) == 4
    maps = [torch.full((1, 1, 1, 1), float(value)) for value in (1, -10, 100, 1000, 10000)] * 2
    total = merge_views(maps, views, 28)[0, 0]
    assert total.shape == (32, 32)
    # Absolute values, summed over all that cover a place, each crop and its mirror image: twice.
    top, bottom, inner = total[0, [0, 3, 4, 28, 31]], total[31, [0, 3, 4, 28, 31]], total[2, [2, 16, 29]]
    np.testing.assert_allclose(top, [2, 2, 22, 20, 20], rtol=1e-5)
    np.testing.assert_allclose(bottom, [200, 200, 2200, 2000, 2000], rtol=1e-5)
    np.testing.assert_allclose(inner, [20002, 20022, 20020], rtol=1e-5)
    np.testing.assert_allclose(total[16, 16], 22222, rtol=1e-5)


def test_mirrored_maps_of_ten_crops_are_mirrored_back():
    views = views_of("ten-crop", 28)
    blank = torch.zeros(1, 1, 1, 2)
    left = torch.tensor([[[[1.0, 0]]]])
    for index, strong in ((0, 0), (5, 27)):
        maps = [left if number == index else blank for number in range(10)]
        total = merge_views(maps, views, 28)[0, 0]
        assert total[0, strong] == 1
        assert total[0, 27 - strong] == 0
        assert total[:, 28:].sum() == total[28:].sum() == 0


@pytest.fixture(scope="module")
def cat():
    return data.chelsea()[:300, :450]


def test_a_mirrored_photograph_gives_mirrored_maps_and_boxes(default_package, cat):
    localizer = localizer_of(default_package, views="flip")
    plain, mirrored = localizer.localize([encode(cat, "PNG"), encode(cat[:, ::-1].copy(), "PNG")])
    assert plain.cams.shape == (5, 7, 7)
    assert plain.names == mirrored.names
    np.testing.assert_allclose(plain.scores, mirrored.scores, atol=1e-5)
    np.testing.assert_allclose(plain.cams, mirrored.cams[:, :, ::-1], atol=0.01, rtol=2e-3)
    expected = corners(mirrored.boxes)
    expected[:, [0, 2]] = 450 - expected[:, [2, 0]]
    np.testing.assert_allclose(corners(plain.boxes), expected, atol=3)
    # A single look does not see both sides alike, or this would show nothing.
    one, other = localizer_of(default_package).localize(
        [encode(cat, "PNG"), encode(cat[:, ::-1].copy(), "PNG")]
    )
    assert np.abs(one.scores - other.scores).max() > 1e-3


def test_flipped_maps_and_bias_are_the_mean_logits(default_package, cat):
    localizer = localizer_of(default_package, views="flip")
    image = localizer.preprocess(encode(cat, "PNG"))
    maps = localizer.forward([image], [[3]])
    assert maps.targets.labels_M.tolist() == [3]
    bias = default_package.network.bias_K.detach().numpy()
    pixels = (image.pixels_CHW[None].float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        logits_VK = default_package.network.model(torch.cat([pixels, pixels.flip(-1)]))
    logits_K, scores_K = logits_VK.mean(0).numpy(), logits_VK.softmax(1).mean(0).numpy()
    for classes in (maps.best, maps.targets):
        means = classes.maps_Mhw.mean((1, 2)) + bias[classes.labels_M]
        np.testing.assert_allclose(means, logits_K[classes.labels_M], atol=1e-3)
        np.testing.assert_allclose(classes.scores_M, scores_K[classes.labels_M], atol=1e-5)


def ten_crop(package, pixels_HWC, labels):
    """Ten crops as in the paper, implemented with NumPy and OpenCV; only the network is shared.

    Returns the mean probability of each class, and the maps of labels at 256x256.
    """
    square = np.asarray(Image.fromarray(pixels_HWC).resize((256, 256), Image.Resampling.BILINEAR))
    square = (square.astype(np.float32) / 255 - 0.5) / 0.5
    probabilities, total = [], np.zeros((len(labels), 256, 256))
    weights = package.network.classifier.weight.detach().numpy()[labels]
    for y, x in ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16)):
        for mirrored in (False, True):
            crop = square[y : y + 224, x : x + 224]
            crop = crop[:, ::-1] if mirrored else crop
            with torch.inference_mode():
                batch = torch.from_numpy(crop.transpose(2, 0, 1).copy())[None]
                features, logits = (part[0].numpy() for part in package.network(batch))
            odds = np.exp(logits.astype(np.float64) - logits.max())
            probabilities.append(odds / odds.sum())
            for n, cam in enumerate(np.tensordot(weights, features, 1)):
                large = cv2.resize(cam, (224, 224), interpolation=cv2.INTER_LINEAR)
                total[n, y : y + 224, x : x + 224] += np.abs(large[:, ::-1] if mirrored else large)
    return np.mean(probabilities, 0), total


def test_ten_crop_equals_a_second_implementation(default_package, cat):
    localizer = localizer_of(default_package, views="ten-crop", top_k=3)
    (row,) = localizer.localize([encode(cat, "PNG")], [[954]])
    assert row.cams.shape == (3, 32, 32)
    assert row.targets[0].cam.shape == (32, 32)
    probabilities, maps = ten_crop(default_package, cat, [*row.labels, 954])
    assert row.labels.tolist() == np.argsort(-probabilities)[:3].tolist()
    np.testing.assert_allclose(row.scores, probabilities[row.labels], atol=2e-3)
    assert row.targets[0].score == pytest.approx(probabilities[954], abs=2e-3)
    # 256 -> 32: the mean of eight by eight. Pillow rounds its pixels another way than torch by at most one.
    small = maps.reshape(4, 32, 8, 32, 8).mean((2, 4))
    stored = np.concatenate([row.cams, row.targets[0].cam[None]]).astype(np.float64)
    np.testing.assert_allclose(stored, small, rtol=0.02, atol=0.01 * small.max())
    assert stored.min() >= 0
    # Boxes are of the stored map: at 256x256, a fifth of its peak, then to the photograph's 450x300.
    for box, cam in zip(corners(row.boxes), row.cams, strict=True):
        large = cv2.resize(cam.astype(np.float32), (256, 256), interpolation=cv2.INTER_LINEAR)
        expected = boxes_from_map(large)[0] * np.array([450, 300, 450, 300]) / 256
        np.testing.assert_allclose(box, expected, rtol=1e-6)


@pytest.mark.parametrize("views", ["single", "flip", "ten-crop"])
def test_crop_keeps_boxes_inside_the_image(default_package, views):
    photo = data.astronaut()[:, 100:356]  # 256 wide, 512 high
    localizer = localizer_of(default_package, views=views, resize="crop", input_size=128)
    (row,) = localizer.localize([encode(photo, "PNG")])
    boxes = corners(row.boxes)
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert (boxes[:, [0, 2]] >= 0).all()
    assert (boxes[:, [0, 2]] <= 256).all()
    # The centre square is all that was seen.
    assert boxes[:, 1].min() >= 128 - 2
    assert boxes[:, 3].max() <= 384 + 2
    assert row.cams.shape == (5, *((32, 32) if views == "ten-crop" else (4, 4)))


@pytest.mark.parametrize(("scoring", "score"), [("softmax", torch.softmax), ("sigmoid", None)])
@pytest.mark.parametrize("views", ["flip", "ten-crop"])
def test_scores_are_means_of_the_views_scores(views, scoring, score):
    package = replace(tiny_package(), scoring=scoring)
    with torch.no_grad():
        package.network.classifier.weight *= 30  # so that a mean of scores is not the score of a mean
    localizer = localizer_of(package, views=views, top_k=3)
    side = frame_size(32, views)
    pixels_CHW = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    maps = localizer.forward([PreprocessedImage(pixels_CHW, Frame(side, side, side))], [[]])
    images_BCHW = (pixels_CHW[None].float() / 255 - 0.5) / 0.5
    crops = [view.crop(images_BCHW, 32) for view in views_of(views, 32)]
    with torch.inference_mode():
        logits_VK = torch.cat([package.network(crop)[1] for crop in crops])
    scores_VK = logits_VK.sigmoid() if score is None else score(logits_VK, 1)
    expected = scores_VK.mean(0)[maps.best.labels_M]
    np.testing.assert_allclose(maps.best.scores_M, expected, atol=1e-5)
    assert (np.diff(maps.best.scores_M) <= 0).all()
    assert maps.best.maps_Mhw.shape == (3, *((32, 32) if views == "ten-crop" else (8, 4)))


def test_unknown_views():
    with pytest.raises(UsageError, match="unknown views 'five-crop': choose from single, flip, ten-crop"):
        localizer_of(tiny_package(), views="five-crop")
