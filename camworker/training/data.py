"""Batches of labelled images for training and validation, read by worker processes and seeded per image."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from camworker.errors import Failure
from camworker.frame import Frame
from camworker.images.decode import decode, network_input
from camworker.inputs import ReadPolicy
from camworker.inputs.fetch import open_fetchers, read_file
from camworker.schemas import ITEMS
from camworker.storage.uris import Connections

# Augmentation that suits localization: crops that hold most of the object, so that the network is not
# rewarded for recognizing one part of it; mirror images; small changes of brightness, contrast and
# saturation.
_CROP_AREA: Final = (0.4, 1.0)
_JITTER: Final = 0.2

Step = tuple[int, int]  # (epoch, row of an item)
Loaded = tuple[int, torch.Tensor, Frame]  # (row of the item, pixels_CHW, frame of the image)


@dataclass(frozen=True)
class Batch:
    """A batch of B images and their labels.

    Attributes:
        pixels_BCHW: uint8 pixels at the network's input size.
        targets_BK: float32; 1 for the labels of an image, else 0.
        rows: Rows of the images' items.
        frames: The frame of each image; meaningful only without augmentation.
        failed: Number of images that could not be read and are missing from the batch.
    """

    pixels_BCHW: torch.Tensor
    targets_BK: torch.Tensor
    rows: tuple[int, ...]
    frames: tuple[Frame, ...]
    failed: int


class ImageDataset(Dataset[Loaded | Failure]):
    """Labelled images as pixels at the network's input size.

    Args:
        items: Items that name files (schema ITEMS), see `unpack`.
        classes: Number of classes.
        size: Side of the network's input in pixels.
        augment: Crop, mirror and colour the images at random.
        seed: Seed of the augmentation.
    """

    def __init__(self, items: pa.Table, classes: int, size: int, *, augment: bool, seed: int) -> None:
        self._uris: list[str] = [str(uri) for uri in items["uri"].to_pylist()]
        self._labels: list[list[int]] = [list(labels or ()) for labels in items["labels"].to_pylist()]
        self._classes, self._size, self._seed = classes, size, seed
        self._connections = Connections()
        self._augment: v2.Transform | None = None
        if augment:
            self._augment = v2.Compose(
                [
                    v2.RandomResizedCrop(size, _CROP_AREA, antialias=True),
                    v2.RandomHorizontalFlip(),
                    v2.ColorJitter(_JITTER, _JITTER, _JITTER),
                ]
            )

    def __len__(self) -> int:
        return len(self._uris)

    def __getitem__(self, step: Step) -> Loaded | Failure:
        epoch, row = step
        data = read_file(self._uris[row], connections=self._connections)
        pixels_CHW = data if isinstance(data, Failure) else decode(data)
        if isinstance(pixels_CHW, Failure):
            return pixels_CHW
        height, width = pixels_CHW.shape[1:]
        frame = Frame(width, height, self._size)
        if self._augment is None:
            return row, network_input(pixels_CHW, frame), frame
        # The seed depends only on the image and the epoch: the result is the same in any process, and after
        # a training was resumed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self._seed, epoch, row)) & 0x7FFF_FFFF_FFFF_FFFF)
            return row, self._augment(pixels_CHW), frame

    def collate(self, images: list[Loaded | Failure]) -> Batch:
        """Combine images to a batch, leaving out those that failed."""
        loaded = [image for image in images if not isinstance(image, Failure)]
        targets_BK = torch.zeros(len(loaded), self._classes)
        for index, (row, _, _) in enumerate(loaded):
            targets_BK[index, self._labels[row]] = 1
        empty = torch.zeros(0, 3, self._size, self._size, dtype=torch.uint8)
        return Batch(
            torch.stack([pixels_CHW for _, pixels_CHW, _ in loaded]) if loaded else empty,
            targets_BK,
            tuple(row for row, _, _ in loaded),
            tuple(frame for _, _, frame in loaded),
            len(images) - len(loaded),
        )


class EpochSampler(Sampler[list[Step]]):
    """Yields the batches of one epoch.

    Args:
        count: Number of items.
        size: Number of items of a batch; the last batch may be smaller.
        shuffle: Shuffle the items by seed and epoch instead of keeping their order.
        seed: Seed of the shuffling.

    Attributes:
        epoch: The epoch to yield; set it before iterating.
    """

    def __init__(self, count: int, size: int, *, shuffle: bool, seed: int) -> None:
        self._count, self._size, self._shuffle, self._seed = count, size, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self._count // self._size)

    def __iter__(self) -> Iterator[list[Step]]:
        order: NDArray[np.int64] = np.arange(self._count)
        if self._shuffle:
            order = np.random.default_rng((self._seed & 0xFFFF_FFFF, self.epoch)).permutation(self._count)
        for start in range(0, self._count, self._size):
            yield [(self.epoch, int(row)) for row in order[start : start + self._size]]


def training_batches(
    items: pa.Table, classes: int, size: int, batch: int, *, training: bool, seed: int, processes: int
) -> tuple[DataLoader[Loaded | Failure], EpochSampler]:
    """Create a loader of `Batch` for items.

    Args:
        items: Items that name files (schema ITEMS), see `unpack`.
        classes: Number of classes.
        size: Side of the network's input in pixels.
        batch: Number of images of a batch.
        training: Shuffle and augment the images.
        seed: Seed of shuffling and augmentation.
        processes: Number of processes that read images; 0 reads in the calling process.

    Returns:
        The loader, and the sampler whose `epoch` decides what the loader yields.
    """
    images = ImageDataset(items, classes, size, augment=training, seed=seed)
    sampler = EpochSampler(items.num_rows, batch, shuffle=training, seed=seed)
    loader = DataLoader(
        images,
        batch_sampler=sampler,
        collate_fn=images.collate,
        num_workers=processes,
        persistent_workers=processes > 0,
        generator=torch.Generator(),  # otherwise the loader draws from the global generator
    )
    return loader, sampler


def unpack(items: pa.Table, folder: str, policy: ReadPolicy) -> pa.Table:
    """Write the images that are stored in Parquet files into files of their own.

    Training reads images in random order; from a Parquet file, each would cost reading a row group. A row
    that cannot be read gets an empty file, which fails like any other broken image.

    Args:
        items: Items (schema ITEMS).
        folder: The folder for the files.
        policy: Which files may be read for the items.

    Returns:
        The items, with the paths of the written files as `uri`.
    """
    in_table = items["source_row"].is_valid().to_numpy(zero_copy_only=False)
    if not in_table.any():
        return items
    uris = items["uri"].to_pylist()
    # Rows are read in the order of their table, whatever the order of the items is.
    order = items.select(["uri", "source_row"]).append_column("row", pa.array(np.arange(len(uris))))
    table_rows = order.filter(pa.array(in_table)).sort_by([("uri", "ascending"), ("source_row", "ascending")])
    rows = table_rows["row"].to_numpy()
    fetchers = open_fetchers(items.take(rows), policy)
    for row, fetch in zip(rows.tolist(), fetchers, strict=True):
        data = fetch()
        uris[row] = os.path.join(folder, f"{row:09d}")
        with open(uris[row], "wb") as file:
            file.write(b"" if isinstance(data, Failure) else data)
    column = items.schema.get_field_index("uri")
    return items.set_column(column, ITEMS.field("uri"), pa.array(uris, pa.string()))
