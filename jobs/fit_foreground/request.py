"""The request of `camworker fit-foreground`: the network and the images, checked before work starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from camworker.errors import UsageError
from camworker.inputs import ReadPolicy
from camworker.inputs.sampling import select
from camworker.inputs.sources import check_location, open_source
from camworker.storage.uris import exists_uri, is_s3, join_uri

if TYPE_CHECKING:
    from camworker.networks.foreground_file import FittedForeground
    from camworker.networks.package import NetworkPackage
    from jobs.fit_foreground.worker import FitSettings

_FILE_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class FitOptions:
    """The options of a run.

    Attributes:
        location: An input as localize takes it.
        output: The file or the new package that gets the head; None changes the package that is named.
        add: Add the images to those of the package's head.
        replace: Replace the package's head.
        network: Name of the network, or None for the default.
        weights: Network package or weights file, or None for the network's own.
        batch_size: Number of images of a batch, or None for the device's default.
        image_labels: File with known labels of the images.
        id_column: Column of a table that holds image ids.
        limit: Use only the first images.
        sample: Use only a sample of this many images.
        seed: Seed of the sample.
        roots: Folders that a manifest may name files in.
    """

    location: str
    output: str | None
    add: bool
    replace: bool
    network: str | None
    weights: str | None
    batch_size: int | None
    image_labels: str | None
    id_column: str | None
    limit: int | None
    sample: int | None
    seed: int
    roots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FitRequest:
    """A checked request.

    Attributes:
        package: The network in float32, on the CPU.
        items: The images (schema ITEMS).
        policy: Which files may be read for the items.
        settings: The settings of the workers.
        earlier: The head whose images are added to these; None without `--add`.
        target: Where the head is written: a file, or the folder of a new package.
        in_place: Whether `target` is the file of the package that the network was loaded from.
    """

    package: "NetworkPackage"
    items: pa.Table
    policy: ReadPolicy
    settings: "FitSettings"
    earlier: "FittedForeground | None"
    target: str
    in_place: bool

    @property
    def makes_package(self) -> bool:
        """Whether the head is written as part of a new package."""
        return not self.target.endswith(_FILE_SUFFIX)

    @property
    def kind_of_classes(self) -> str:
        """Where the classes of the images come from, for people."""
        known = pc.list_value_length(self.items["labels"]).to_pylist()
        return "known" if all(known) else "known or predicted" if any(known) else "predicted"

    def cut(self, start: int, size: int) -> tuple[pa.Table, ReadPolicy]:
        """Return a worker's share of the images as a copy; a slice would be sent with the whole table."""
        items = self.items.take(np.arange(start, min(start + size, self.items.num_rows)))
        uris = cast(list[str], pc.unique(items["uri"]).to_pylist()) if self.policy.tables else []
        return items, self.policy.for_uris(uris)


def build_fit_request(options: FitOptions) -> FitRequest:
    """Check the options of a run and return the request.

    Raises:
        UsageError: The options, the network or the images cannot work.
    """
    check_location(options.location)  # before torch is imported, which takes seconds
    if options.output is not None:
        _refuse_overwriting(options.output)

    from camworker.networks.foreground import MIN_FOREGROUND_IMAGES
    from camworker.networks.foreground_file import FOREGROUND_FILE
    from camworker.networks.package import is_package, load
    from camworker.training.foreground_sums import require_taps
    from jobs.fit_foreground.worker import FitSettings

    folder = options.weights or options.network
    if options.output is None and not (folder and is_package(folder)):
        raise UsageError(
            "name the network package whose head is fitted, or where to write the head", parameter="output"
        )
    package = load(options.network, options.weights)
    require_taps(package)  # raises an error if the network has no maps for a head
    target = options.output or join_uri(str(folder), FOREGROUND_FILE)
    in_place = options.output is None
    if in_place:
        _check_replacing(target, options)
    if options.add and package.foreground is None:
        raise UsageError(f"{package.name} has no foreground head to add images to", parameter="add")
    earlier = package.foreground if options.add else None

    listing = open_source(
        options.location,
        package.classes,
        image_labels=options.image_labels,
        id_column=options.id_column,
        policy=ReadPolicy(roots=options.roots),
    )
    items = select(listing.items, limit=options.limit, sample=options.sample, seed=options.seed)
    total = items.num_rows + (earlier.sums.images if earlier else 0)
    if total < MIN_FOREGROUND_IMAGES:
        raise UsageError(
            f"{total} images are too few: a foreground head needs at least {MIN_FOREGROUND_IMAGES}, "
            "of many classes"
        )
    settings = FitSettings(package.fingerprint, options.network, options.weights, options.batch_size)
    return FitRequest(package, items, listing.policy, settings, earlier, target, in_place)


def write_head(request: FitRequest, fitted: "FittedForeground") -> None:
    """Write a head where the request says; a reader sees the old one or the new one.

    Raises:
        UsageError: Another head was written there in the meantime.
    """
    from camworker.networks.foreground_file import write_foreground
    from camworker.networks.package import save, with_foreground

    if request.makes_package:
        save(with_foreground(request.package, fitted, "the new head"), request.target)
    else:
        write_foreground(fitted, request.target, replace=request.in_place)


def _refuse_overwriting(output: str) -> None:
    file = output if output.endswith(_FILE_SUFFIX) else join_uri(output, "network.json")
    try:
        exists = exists_uri(file)
    except OSError as error:
        raise UsageError(f"{output} cannot be read: {error}", parameter="output") from error
    if exists:
        raise UsageError(f"{file} exists already: choose another place", parameter="output")


def _check_replacing(target: str, options: FitOptions) -> None:
    if not exists_uri(target):
        return
    if not options.add and not options.replace:
        raise UsageError(
            f"{target} exists already: add the images to it with --add, or fit it anew with --replace"
        )
    if is_s3(target):
        raise UsageError(f"{target} cannot be replaced: write a new package", parameter="output")
