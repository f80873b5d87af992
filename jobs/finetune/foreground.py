"""The foreground head of a fine-tuned network: that of the network that its backbone comes from."""

import os
from collections import Counter
from itertools import chain
from typing import Final, cast

import pyarrow as pa

from camworker.inputs.sampling import select
from camworker.networks.foreground import MANY_CLASSES, effective_classes
from camworker.networks.foreground_file import FittedForeground, published_foreground
from camworker.networks.package import NetworkPackage, is_package, load
from camworker.networks.registry import DEFAULT
from camworker.networks.state_dicts import PUBLISHED
from camworker.training.foreground_sums import ForegroundCollector, fit_foreground
from jobs.finetune.config import FinetuneConfig

# A head of some hundred numbers gains nothing from more.
_MOST_IMAGES: Final = 1000


def foreground_of_backbone(config: FinetuneConfig) -> FittedForeground | None:
    """Return the foreground head of the network that the initial weights are from, None if there is none.

    Fine-tuning changes the maps that a head reads by so little that it still holds: the map at stride 8 of
    EfficientNet-Lite0 by 6%, that at stride 16 by 15%.
    """
    weights = config.initial_weights
    if weights == PUBLISHED:
        return published_foreground() if config.network == DEFAULT else None
    if weights is not None and is_package(weights):
        return load(config.network, weights).foreground
    return None


def with_training_images(
    package: NetworkPackage, foreground: FittedForeground, config: FinetuneConfig
) -> FittedForeground:
    """Return the head of a trained network, with the training images added if they are of many classes.

    Images of few classes would spoil it, see `MANY_CLASSES`. Of more than 1000 images a sample is added.

    Args:
        package: The trained network.
        foreground: The head of its backbone.
        config: The training.
    """
    items = select(config.training, limit=None, sample=_MOST_IMAGES, seed=config.hyperparameters.seed)
    if effective_classes(_class_counts(items).values()) < MANY_CLASSES:
        return foreground
    collected = ForegroundCollector(package).collect(
        items,
        config.policy,
        decoders=os.cpu_count() or 1,
        isolate=True,  # A crashing decoder must not end the driver.
    )
    fit = {"input": "training images", "images": collected.sums.images, "classes": "known"}
    return fit_foreground(package, foreground.sums + collected.sums, (*foreground.fits, fit))


def _class_counts(items: pa.Table) -> Counter[int]:
    return Counter(chain.from_iterable(cast("list[list[int]]", items["labels"].to_pylist())))
