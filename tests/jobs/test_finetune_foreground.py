"""The foreground head of a fine-tuned network: whose it is, and when training images are added."""

from pathlib import Path

import pyarrow as pa
import pytest

from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.networks.foreground_file import FittedForeground, published_foreground
from camworker.networks.package import NetworkPackage, load, save
from camworker.training.foreground_sums import ForegroundCollector, fit_foreground
from camworker.training.trainer import Hyperparameters
from jobs.finetune.config import FinetuneConfig
from jobs.finetune.foreground import foreground_of_backbone, with_training_images
from support.tapped_network import discs, tapped_package

COUNT = 104


def config(package: NetworkPackage, items: pa.Table, **changed: str | None) -> FinetuneConfig:
    return FinetuneConfig(
        network=changed.get("network", "efficientnet_lite0"),
        pooling="avg",
        classes=len(package.classes),
        init=changed.get("init"),
        backbone_weights=changed.get("backbone_weights"),
        preprocessing=package.preprocessing,
        hyperparameters=Hyperparameters(1, 8, 0.1, 0.1, 0.0, multi_label=False, seed=0),
        patience=None,
        training=items,
        held_back=items.slice(0, 0),
        boxes=[],
        policy=ReadPolicy(),
    )


@pytest.fixture(scope="module")
def package() -> NetworkPackage:
    return tapped_package()


@pytest.fixture(scope="module")
def items(package: NetworkPackage, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return open_source(str(discs(tmp_path_factory.mktemp("discs"), COUNT)), package.classes).items


@pytest.fixture(scope="module")
def foreground(package: NetworkPackage, items: pa.Table) -> FittedForeground:
    sums = ForegroundCollector(package).collect(items, ReadPolicy(), decoders=2).sums
    return fit_foreground(package, sums, [{"input": "discs"}])


def labelled(items: pa.Table, classes: int) -> pa.Table:
    labels = pa.array([[number % classes] for number in range(items.num_rows)], pa.list_(pa.int32()))
    return items.set_column(items.schema.get_field_index("labels"), "labels", labels)


def test_whose_head_is_kept(package: NetworkPackage, items: pa.Table, tmp_path: Path) -> None:
    default = load()
    save(default, tmp_path / "p")
    shipped = published_foreground().head.fingerprint
    published = foreground_of_backbone(config(package, items, init="published"))
    assert published is not None
    assert published.head.fingerprint == shipped
    of_package = foreground_of_backbone(config(package, items, backbone_weights=str(tmp_path / "p")))
    assert of_package is not None
    assert of_package.head.fingerprint == shipped
    for without in (
        {"init": "random"},
        {"init": "published", "network": "timm:resnet18"},
        {"backbone_weights": str(tmp_path / "p" / "weights.safetensors")},
    ):
        assert foreground_of_backbone(config(package, items, **without)) is None


def test_images_of_few_classes_are_not_added(
    package: NetworkPackage, items: pa.Table, foreground: FittedForeground
) -> None:
    assert with_training_images(package, foreground, config(package, labelled(items, 29))) is foreground


def test_images_of_many_classes_are_added(
    package: NetworkPackage, items: pa.Table, foreground: FittedForeground
) -> None:
    fitted = with_training_images(package, foreground, config(package, labelled(items, 31)))
    added = fitted.fits[-1]["images"]  # those with a positive value in the map of their class
    assert 50 < added <= COUNT
    assert fitted.sums.images == COUNT + added
    assert fitted.sums.class_counts["class 30"] >= 2
    assert [fit["input"] for fit in fitted.fits] == ["discs", "training images"]
    assert fitted.head.fingerprint != foreground.head.fingerprint
