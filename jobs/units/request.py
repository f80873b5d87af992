"""The request of `camworker units`: the network, its units and the images, checked before work starts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.frame import FrameSpec
from camworker.inputs import ReadPolicy
from camworker.inputs.sampling import select
from camworker.inputs.sources import check_location, open_source
from camworker.ledger.ledger import Ledger, open_ledger
from camworker.ledger.recipe import Recipe
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import Precision
from camworker.storage.uris import open_store
from camworker.units.top_activations import units_of_classes

if TYPE_CHECKING:
    from camworker.networks.package import NetworkPackage
    from jobs.units.worker import UnitsSettings

_COLUMNS: Final = ("image_id", "uri", "source_row", "identity")


@dataclass(frozen=True, slots=True)
class UnitsOptions:
    """The options of a run.

    Attributes:
        location: An output of localize, or an input as localize takes it.
        recipe_id: Id of the recipe to read, if `location` is an output with several.
        network: Name of the network, or None for the default.
        weights: Network package or weights file, or None for the network's own.
        input_size: Side of the network's input in pixels, or None for that of the recipe or the network.
        precision: The precision in which the network runs.
        batch_size: Number of images of a batch, or None for the device's default.
        classes: Names, indices or WordNet ids of the classes; all classes if empty.
        units: Number of units for each class.
        patches: Number of patches for each unit.
        limit: Use only the first images.
        sample: Use only a sample of this many images.
        seed: Seed of the sample.
        roots: Folders that a manifest may name files in.
    """

    location: str
    recipe_id: str | None
    network: str | None
    weights: str | None
    input_size: int | None
    precision: Precision
    batch_size: int | None
    classes: Sequence[str]
    units: int
    patches: int
    limit: int | None
    sample: int | None
    seed: int
    roots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageBatchSource:
    """Images that share a read policy.

    Attributes:
        items: Columns image_id, uri, source_row, identity, and number: the rank of the image's id among the
            images of all sources.
        policy: Which files may be read for the items.
    """

    items: pa.Table
    policy: ReadPolicy

    def cut(self, start: int, size: int) -> tuple[pa.Table, ReadPolicy]:
        """Return a worker's share of the images as a copy; a slice would be sent with the whole table."""
        items = self.items.take(np.arange(start, min(start + size, self.items.num_rows)))
        uris = cast(list[str], pc.unique(items["uri"]).to_pylist()) if self.policy.tables else []
        return items, self.policy.for_uris(uris)


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request.

    Attributes:
        package: The network in float32, on the CPU.
        sources: The images.
        labels: Indices of the classes, in the order in which they were named.
        units_KU: The units of each class, by descending weight.
        weights_KC: Weights of the network's head.
        map_size: Rows and columns of the feature map.
        settings: The settings of the workers.
    """

    package: "NetworkPackage"
    sources: list[ImageBatchSource]
    labels: NDArray[np.int32]
    units_KU: NDArray[np.int32]
    weights_KC: NDArray[np.float32]
    map_size: tuple[int, int]
    settings: "UnitsSettings"

    @property
    def images(self) -> int:
        """Number of images of all sources."""
        return sum(source.items.num_rows for source in self.sources)

    @property
    def items(self) -> pa.Table:
        """The items of all sources."""
        return pa.concat_tables([source.items for source in self.sources])


def build_request(options: UnitsOptions) -> Request:
    """Check the options of a run and return the request.

    Raises:
        UsageError: The options, the network or the images cannot work.
    """
    location = options.location
    path = check_location(location)  # before torch is imported, which takes seconds
    recipe: Recipe | None = None
    ledger: Ledger | None = None
    if os.path.isdir(path) and Ledger.recipes(open_store(path)):
        ledger = open_ledger(open_store(path), options.recipe_id, location)
        recipe = ledger.read_recipe()
        if options.input_size not in (None, recipe.frame_spec.input_size):
            raise UsageError(
                f"{location} was made with input size {recipe.frame_spec.input_size}: remove --input-size"
            )
    elif options.recipe_id:
        raise UsageError(f"{location} is not an output of localize: remove --recipe")

    from camworker.networks.gap_check import check_gap_head
    from camworker.networks.package import load
    from jobs.units.worker import UnitsSettings

    output_stride = recipe.output_stride if recipe else None
    package = load(options.network, options.weights, output_stride=output_stride)
    if recipe and package.fingerprint != recipe.weights_fingerprint:
        raise UsageError(
            f"{location} was made by {recipe.network} with other weights: "
            "name them with --network and --weights"
        )
    spec = recipe.frame_spec if recipe else FrameSpec(options.input_size or package.preprocessing.input_size)
    map_size = check_gap_head(package.network, spec.input_size)
    labels = np.arange(len(package.classes), dtype=np.int32)
    if options.classes:
        labels = package.classes.resolve(pa.array(options.classes, pa.string()), "--class")
        labels = labels[np.sort(np.unique(labels, return_index=True)[1])]
    weights_KC = package.network.weights_KC.detach().float().cpu().numpy()
    units_KU = units_of_classes(weights_KC, labels, options.units)
    settings = UnitsSettings(
        fingerprint=package.fingerprint,
        network=options.network,
        weights=options.weights,
        output_stride=output_stride,
        precision=options.precision,
        input_size=spec.input_size,
        resize=spec.resize,
        batch_size=options.batch_size,
        units_U=np.unique(units_KU),
        count=options.patches,
    )
    sources = (
        _output_sources(options, Snapshot.load(ledger))
        if ledger
        else _input_sources(options, package.classes)
    )
    return Request(package, sources, labels, units_KU, weights_KC, map_size, settings)


def _output_sources(options: UnitsOptions, snapshot: Snapshot) -> list[ImageBatchSource]:
    """Return the images whose current rows have predictions, with a source for each generation."""
    rows = pa.concat_tables(
        table.filter(pc.equal(table["status"], pa.scalar("ok"))).replace_schema_metadata(None)
        for table in snapshot.iter_latest([*_COLUMNS, "generation", "status"])
    )
    rows = _numbered(_selected(rows, options))
    sources = []
    for generation in cast(list[int], pc.unique(rows["generation"]).to_pylist()):
        plan = snapshot.plan(generation)
        in_generation = pc.equal(rows["generation"], pa.scalar(generation))
        items = rows.filter(in_generation).select([*_COLUMNS, "number"])
        sources.append(ImageBatchSource(items, plan.policy))
    return sources


def _input_sources(options: UnitsOptions, classes: Classes) -> list[ImageBatchSource]:
    """Return the images that localize would list for this input."""
    listing = open_source(options.location, classes, policy=ReadPolicy(roots=options.roots))
    items = _numbered(_selected(listing.items, options)).select([*_COLUMNS, "number"])
    return [ImageBatchSource(items, listing.policy)]


def _selected(rows: pa.Table, options: UnitsOptions) -> pa.Table:
    rows = select(rows, limit=options.limit, sample=options.sample, seed=options.seed)
    if not rows.num_rows:
        raise UsageError(f"{options.location} has no images to evaluate")
    return rows


def _numbered(rows: pa.Table) -> pa.Table:
    """Add the rank of each image by its id, which orders equal peaks in the same way in every source."""
    image_ids = cast("pa.StringArray", rows["image_id"].combine_chunks())
    numbers: Any = pc.rank(image_ids, tiebreaker="first")
    return rows.append_column("number", numbers.cast(pa.int64()))
