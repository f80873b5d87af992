"""Refined maps through the Localizer: stored maps give stored boxes, by every route, and per-row columns."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from camworker.boxes.refine import decode_refined, refined_maps
from camworker.boxes.rules import boxes_from_cam
from camworker.errors import CommitError, UsageError
from camworker.frame import FrameSpec
from camworker.inference.localizer import Localizer
from camworker.networks.package import NetworkPackage
from camworker.presets import Choices, build_recipe, resolve
from camworker.refinement import ForegroundHead, Refinement
from camworker.schemas import CamShape, refined_u8
from support.factories import photograph, plan_of, read, run
from support.row_tables import corners
from support.tapped_network import discs, tapped_package

LABELS = [[3, 1], [], [7], [0], [], [39]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = discs(tmp_path_factory.mktemp("images"), 6)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def package() -> NetworkPackage:
    """A package with a foreground head of arbitrary numbers."""
    random = np.random.default_rng(0)
    head = ForegroundHead(random.normal(size=5), random.normal(size=6), 0.1)
    return replace(tapped_package(), foreground=SimpleNamespace(head=head))


def localizer_of(package: NetworkPackage, **options: object) -> Localizer:
    defaults: dict[str, object] = {"device": "cpu", "precision": "float32", "batch_size": 4, "top_k": 3}
    return Localizer(package, **(defaults | options))


def assert_equal_rows(rows: list, others: list) -> None:
    for row, other in zip(rows, others, strict=True):
        np.testing.assert_array_equal(row.refined, other.refined)
        np.testing.assert_array_equal(row.boxes, other.boxes)
        for one, two in zip(row.targets, other.targets, strict=True):
            np.testing.assert_array_equal(one.refined, two.refined)
            np.testing.assert_array_equal(one.boxes, two.boxes)


@pytest.mark.parametrize("refine", ["ridge", "foreground"])
@pytest.mark.parametrize("views", ["single", "flip"])
def test_rows_hold_the_refined_map_of_the_best_class_and_of_known_classes(package, images, refine, views):
    localizer = localizer_of(package, refine=refine, views=views)
    assert localizer.refined_shape == CamShape(1, 16, 16)
    rows = localizer.localize(images, LABELS)
    every = localizer_of(package, refine=refine, views=views, refined="all").localize(images, LABELS)
    for row, full in zip(rows, every, strict=True):
        assert (row.refined.shape, full.refined.shape) == ((1, 16, 16), (3, 16, 16))
        assert row.refined.dtype == np.uint8
        np.testing.assert_array_equal(row.refined[0], full.refined[0])
        np.testing.assert_array_equal(row.boxes, full.boxes)
        frame = localizer.frame_spec.frame(row.width, row.height)
        # Stored map -> stored box, exactly, for every class.
        for rank, stored in enumerate(decode_refined(full.refined)):
            box = boxes_from_cam(stored, frame, localizer.box_rule)
            np.testing.assert_array_equal(box, corners(row.boxes[row.boxes["rank"] == rank + 1]))
        for target in row.targets:
            assert target.refined.shape == (16, 16)
            box = boxes_from_cam(decode_refined(target.refined), frame, localizer.box_rule)
            np.testing.assert_array_equal(box, corners(target.boxes))
        known = {target.label: target.refined for target in row.targets}
        for label, refined in zip(row.labels, full.refined, strict=True):
            if int(label) in known:
                np.testing.assert_array_equal(known[int(label)], refined)


def test_raw_maps_stay_as_they_are(package, images):
    raw = localizer_of(package, refine="none").localize(images, LABELS)
    for row, other in zip(localizer_of(package).localize(images, LABELS), raw, strict=True):
        np.testing.assert_array_equal(row.cams, other.cams)
        np.testing.assert_array_equal(row.scores, other.scores)
        assert (other.refined, other.targets and other.targets[0].refined) in ((None, None), (None, ()))


def test_rules_on_raw_maps_go_with_refinement(package, images):
    raw = localizer_of(package, refine="none", box_rule="cam:0.3").localize(images, LABELS)
    both = localizer_of(package, refine="ridge", box_rule="cam:0.3").localize(images, LABELS)
    refined = localizer_of(package, refine="ridge").localize(images, LABELS)
    for row, other, fine in zip(both, raw, refined, strict=True):
        np.testing.assert_array_equal(row.boxes, other.boxes)
        np.testing.assert_array_equal(row.refined, fine.refined)


def test_several_boxes_of_a_class(package, images):
    rows = localizer_of(package, refine="ridge", box_rule="fine-multi:0.5").localize(images, LABELS)
    first = localizer_of(package, refine="ridge", box_rule="fine:0.5").localize(images, LABELS)
    for row, one in zip(rows, first, strict=True):
        assert {1, 2, 3} == set(row.boxes["rank"])
        assert len(row.boxes) >= len(one.boxes)
        np.testing.assert_array_equal(row.refined, one.refined)


def test_flip_merges_the_taps_like_the_maps(package, images):
    localizer = localizer_of(package, refine="foreground", views="flip", batch_size=6)
    batch = [localizer.preprocess(image) for image in images]
    maps = localizer.forward(batch, [[]] * 6)
    pixels_BCHW = torch.stack([image.pixels_CHW for image in batch])
    images_BCHW = (pixels_BCHW.float() / 255 - 0.5) / 0.2
    with torch.inference_mode():
        there, back = (package.network.tapped_features(view) for view in (images_BCHW, images_BCHW.flip(-1)))
    for found, one, two in zip((maps.fine_BCHW, maps.deep_BCHW), there[1:], back[1:], strict=True):
        np.testing.assert_allclose(found, (one + two.flip(-1)).numpy() / 2, atol=1e-5)


def test_a_map_without_a_positive_value_has_no_refined_map(package, images):
    empty = replace(package, network=tapped_package().network)
    with torch.no_grad():
        empty.network.classifier.weight[5] = -1.0  # features are positive after their ReLU
    (row,) = localizer_of(empty, top_k=40, refined="all").localize(images[:1], [[5]])
    (target,) = row.targets
    rank = int(np.flatnonzero(row.labels == 5)[0])
    assert not target.refined.any()
    assert not row.refined[rank].any()
    for boxes in (target.boxes, row.boxes[row.boxes["rank"] == rank + 1]):
        assert corners(boxes).tolist() == [[0, 0, row.width, row.height]]
        assert boxes["fallback"].tolist() == [True]
    assert not row.boxes["fallback"].all()


@pytest.mark.parametrize("rule", [None, "fine-multi:0.6", "cam20"])
def test_refined_on_the_device_is_the_same(package, images, rule, monkeypatch):
    """The route of CUDA, with tensors on the CPU: rounding may differ in the last of 255 steps."""
    here = localizer_of(package, box_rule=rule, refined="all").localize(images, LABELS)
    made = localizer_of(package, box_rule=rule, refined="all")
    network = made._cam_network
    monkeypatch.setattr(network, "_refine_on_device", made._refiner.on_device)
    maps = made.forward([made.preprocess(image) for image in images[:4]], LABELS[:4])
    assert (maps.fine_BCHW is not None) == (rule == "fine-multi:0.6")
    assert maps.deep_BCHW is None
    assert maps.best.refined_Mhw.dtype == np.uint8
    for row, other in zip(made.localize(images, LABELS), here, strict=True):
        assert np.abs(row.refined.astype(int) - other.refined).max() <= 1
        np.testing.assert_array_equal(row.cams, other.cams)
        for one, two in zip(row.targets, other.targets, strict=True):
            assert np.abs(one.refined.astype(int) - two.refined).max() <= 1


def test_one_call_refines_a_batch(package, images, monkeypatch):
    """Best and target classes of a batch share the Gram matrix of their image."""
    calls = []

    def counted(cams_Mhw, images_M, *rest):
        calls.append((len(cams_Mhw), sorted(set(images_M.tolist()))))
        return refined_maps(cams_Mhw, images_M, *rest)

    monkeypatch.setattr("camworker.inference.refiner.refined_maps", counted)
    localizer_of(package, refine="ridge").localize(images, LABELS)
    assert calls == [(4 * 3 + 4, [0, 1, 2, 3]), (2 * 3 + 1, [0, 1])]


def test_failures_do_not_shift_the_features(package, images):
    good = localizer_of(package).localize(images[:3])
    mixed = localizer_of(package).localize([images[0], b"no image", images[1], b"", images[2]])
    assert [row.status for row in mixed] == ["ok", "unsupported", "ok", "decode_error", "ok"]
    assert_equal_rows([row for row in mixed if row.status == "ok"], good)
    assert mixed[1].refined is None
    assert [row.refined for row in localizer_of(package).localize([b"", b"x"])] == [None, None]


def test_an_image_that_overflows_leaves_the_others_alone(package, images):
    raw = localizer_of(package, refine="none").localize(images)
    peaks = np.array([np.abs(row.cams.astype(float)).max() for row in raw])
    scaled = replace(package, network=tapped_package().network)
    scale = 65520 / np.sqrt(np.prod(np.sort(peaks)[-2:]))
    with torch.no_grad():
        scaled.network.classifier.weight *= scale
        scaled.network.classifier.bias *= scale
    rows = localizer_of(scaled).localize(images)
    assert [row.status == "map_overflow" for row in rows] == (peaks == peaks.max()).tolist()
    for row, one in zip(rows, localizer_of(package).localize(images), strict=True):
        if row.status == "ok":
            assert np.abs(row.refined.astype(int) - one.refined).max() <= 1


def test_a_part_with_refined_maps(package, tmp_path, ledger):
    folder = discs(tmp_path / "in", 5)
    (folder / "0002.png").write_bytes(photograph(0)[:50])
    localizer = localizer_of(package)
    run(ledger, plan_of(ledger, folder), localizer)
    table = read(ledger)
    assert table["refined"].is_null().to_pylist() == [False, False, True, False, False]
    assert table.schema.metadata[b"refined_shape"] == b"[1, 16, 16]"
    ok = [path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "0002.png"]
    expected = np.stack([row.refined for row in localizer.localize(ok)])
    stored = refined_u8(table["refined"].drop_null(), CamShape(1, 16, 16))
    np.testing.assert_array_equal(stored, expected)


def test_a_recipe_gives_the_same_localizer(package, images, monkeypatch):
    monkeypatch.setattr("camworker.inference.localizer.load", lambda *args, **kwargs: package)
    settings = resolve(Choices(refined="all", top_k=3, views="flip"), package)
    recipe = build_recipe(settings, package, None, "float32")
    again = Localizer.from_recipe(recipe, device="cpu", batch_size=4)
    assert again.settings.refinement == settings.refinement
    assert again.frame_spec == FrameSpec(128, "squash", "flip")
    same = localizer_of(package, refined="all", views="flip")
    assert_equal_rows(again.localize(images, LABELS), same.localize(images, LABELS))
    own = replace(recipe, refinement=Refinement("foreground", 4.0, 0.5, 0.25))
    other = Localizer.from_recipe(own, device="cpu", batch_size=4).localize(images[:1])
    assert not np.array_equal(other[0].refined, same.localize(images[:1])[0].refined)
    with pytest.raises(CommitError, match="foreground head has changed"):
        Localizer.from_recipe(replace(recipe, head="0" * 64), device="cpu")
    with pytest.raises(CommitError, match="other taps"):
        Localizer.from_recipe(replace(recipe, taps=("body.0",)), device="cpu")


def test_a_network_without_taps(tiny_localizer):
    assert (tiny_localizer.settings.refinement, tiny_localizer.box_rule) == (None, "cam20")
    assert "stride 8" in tiny_localizer.settings.no_refinement
    with pytest.raises(UsageError, match="no maps to refine with"):
        localizer_of(tiny_localizer.package, refine="ridge")
