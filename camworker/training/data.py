"""Batches to learn from: images read, decoded and augmented in processes of their own, seeded one by one."""

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

# What suits localization: crops large enough to hold most of the object, so that the network is not
# rewarded for looking at one part of it; mirror images; some change of light.
_CROP_AREA: Final = (0.4, 1.0)
_LIGHT: Final = 0.2

Step = tuple[int, int]  # epoch, index of an item
Loaded = tuple[int, torch.Tensor, Frame]  # index of the item, pixels_CHW, the way back


@dataclass(frozen=True)
class Batch:
    """pixels_BCHW: uint8. targets_BK: float32, 1 where an image has the label. rows: indices of the items.

    frames: of images that are not augmented, the way back to their own pixels. failed: how many images
    could not be read; the batch lacks them.
    """

    pixels_BCHW: torch.Tensor
    targets_BK: torch.Tensor
    rows: tuple[int, ...]
    frames: tuple[Frame, ...]
    failed: int


class Images(Dataset):
    """Labelled items (files) as pixels at the network's input size."""

    def __init__(self, items: pa.Table, classes: int, size: int, *, augment: bool, seed: int) -> None:
        self._uris: list[str] = items["uri"].to_pylist()
        self._labels: list[list[int]] = items["labels"].to_pylist()
        self._classes, self._size, self._seed = classes, size, seed
        self._connections = Connections()
        self._augment: v2.Transform | None = None
        if augment:
            self._augment = v2.Compose(
                [
                    v2.RandomResizedCrop(size, _CROP_AREA, antialias=True),
                    v2.RandomHorizontalFlip(),
                    v2.ColorJitter(_LIGHT, _LIGHT, _LIGHT),
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
        # Of the image and the epoch alone: the same whoever loads it, and after a resumption.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self._seed, epoch, row)) & 0x7FFF_FFFF_FFFF_FFFF)
            return row, self._augment(pixels_CHW), frame

    def collate(self, images: list[Loaded | Failure]) -> Batch:
        """Images -> a batch, without those that failed."""
        good = [image for image in images if not isinstance(image, Failure)]
        targets_BK = torch.zeros(len(good), self._classes)
        for place, (row, _, _) in enumerate(good):
            targets_BK[place, self._labels[row]] = 1
        none = torch.zeros(0, 3, self._size, self._size, dtype=torch.uint8)
        return Batch(
            torch.stack([pixels_CHW for _, pixels_CHW, _ in good]) if good else none,
            targets_BK,
            tuple(row for row, _, _ in good),
            tuple(frame for _, _, frame in good),
            len(images) - len(good),
        )


class EpochSampler(Sampler[list[Step]]):
    """Batches of an epoch: shuffled by (seed, epoch), or as listed."""

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
) -> tuple[DataLoader, EpochSampler]:
    """A loader of Batch for items (files: see unpack), and its order, whose epoch decides what comes."""
    images = Images(items, classes, size, augment=training, seed=seed)
    order = EpochSampler(items.num_rows, batch, shuffle=training, seed=seed)
    loader = DataLoader(
        images,
        batch_sampler=order,
        collate_fn=images.collate,
        num_workers=processes,
        persistent_workers=processes > 0,
        generator=torch.Generator(),  # else it draws from the generator that everybody uses
    )
    return loader, order


def unpack(items: pa.Table, folder: str, policy: ReadPolicy) -> pa.Table:
    """Write images that lie inside Parquet into files of a folder, and return items that name these.

    What is read in any order, epoch after epoch, has to be found without reading a row group each time.
    A row that cannot be read gets an empty file, which fails like any broken image.
    """
    inside = items["source_row"].is_valid().to_numpy(zero_copy_only=False)
    if not inside.any():
        return items
    uris = items["uri"].to_pylist()
    # A table's rows are read in its own order, whatever the order of items.
    order = items.select(["uri", "source_row"]).append_column("row", pa.array(np.arange(len(uris))))
    rows = order.filter(pa.array(inside)).sort_by([("uri", "ascending"), ("source_row", "ascending")])
    places = rows["row"].to_numpy()
    sources = open_fetchers(items.take(pa.array(places)), policy)
    for row, fetch in zip(places.tolist(), sources, strict=True):
        data = fetch()
        uris[row] = os.path.join(folder, f"{row:09d}")
        with open(uris[row], "wb") as file:
            file.write(b"" if isinstance(data, Failure) else data)
    place = items.schema.get_field_index("uri")
    return items.set_column(place, ITEMS.field("uri"), pa.array(uris, pa.string()))
