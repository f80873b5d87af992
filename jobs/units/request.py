"""What units was asked for, checked: the network, its units, and the images of an output or an input."""

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.dataset import iter_latest
from camworker.errors import UsageError
from camworker.frame import FrameSpec
from camworker.inputs import ReadPolicy
from camworker.inputs.sampling import select
from camworker.inputs.sources import check_location, open_source
from camworker.ledger.ledger import Ledger, open_ledger, recipes
from camworker.ledger.recipe import Recipe
from camworker.storage.uris import open_store
from camworker.units.top_activations import units_of_classes

if TYPE_CHECKING:
    from camworker.networks.package import NetworkPackage
    from jobs.units.worker import UnitsSettings

_COLUMNS: Final = ("image_id", "uri", "source_row", "identity")


@dataclass(frozen=True, slots=True)
class ImageBatchSource:
    """Images that are read alike. items: image_id, uri, source_row, identity, number.

    number: of the image by its id among all listings. policy: as in Plan.
    """

    items: pa.Table
    policy: ReadPolicy

    def cut(self, start: int, size: int) -> tuple[pa.Table, ReadPolicy]:
        """A worker's share. Copied: a slice would travel with all that it was cut from."""
        items = self.items.take(np.arange(start, min(start + size, self.items.num_rows)))
        return items, self.policy.for_uris(pc.unique(items["uri"]).to_pylist() if self.policy.tables else ())


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, checked. package: float32, on the CPU; labels: of the classes, in their order."""

    package: "NetworkPackage"
    listings: list[ImageBatchSource]
    labels: NDArray[np.int32]
    units_KU: NDArray[np.int32]
    weights_KC: NDArray[np.float32]
    map_size: tuple[int, int]
    settings: "UnitsSettings"

    @property
    def images(self) -> int:
        return sum(listing.items.num_rows for listing in self.listings)


def build_request(args: argparse.Namespace) -> Request:
    """Check all that was asked for. Raises UsageError."""
    path = check_location(args.input)  # before seconds go into importing torch
    recipe: Recipe | None = None
    ledger: Ledger | None = None
    if os.path.isdir(path) and recipes(open_store(path)):
        ledger = open_ledger(open_store(path), args.recipe, args.input)
        recipe = ledger.read_recipe()
        if args.input_size not in (None, recipe.frame_spec.input_size):
            raise UsageError(
                f"{args.input} was made with input size {recipe.frame_spec.input_size}: "
                "leave --input-size out"
            )
    elif args.recipe:
        raise UsageError(f"{args.input} is no output of localize: leave --recipe out")

    from camworker.networks.gap import check_gap_head
    from camworker.networks.package import load
    from jobs.units.worker import UnitsSettings

    output_stride = recipe.output_stride if recipe else None
    package = load(args.network, args.weights, output_stride=output_stride)
    if recipe and package.fingerprint != recipe.weights_fingerprint:
        raise UsageError(
            f"{args.input} was made by {recipe.network} with other weights: "
            "name them with --network and --weights"
        )
    spec = recipe.frame_spec if recipe else FrameSpec(args.input_size or package.preprocessing.input_size)
    map_size = check_gap_head(package.network, spec.input_size)
    labels = np.arange(len(package.classes), dtype=np.int32)
    if args.classes:
        labels = package.classes.indices(pa.array(args.classes, pa.string()), "--class")
        labels = labels[np.sort(np.unique(labels, return_index=True)[1])]
    weights_KC = package.network.weights_KC.detach().float().cpu().numpy()
    units_KU = units_of_classes(weights_KC, labels, args.units)
    settings = UnitsSettings(
        fingerprint=package.fingerprint,
        network=args.network,
        weights=args.weights,
        output_stride=output_stride,
        precision=args.precision,
        input_size=spec.input_size,
        resize=spec.resize,
        batch_size=args.batch_size,
        units_U=np.unique(units_KU),
        count=args.patches,
    )
    listings = _of_output(args, ledger) if ledger else _of_input(args, package.classes)
    return Request(package, listings, labels, units_KU, weights_KC, map_size, settings)


def _of_output(args: argparse.Namespace, ledger: Ledger) -> list[ImageBatchSource]:
    """The current images of a recipe that are ok, a listing for each generation that has some."""
    rows = pa.concat_tables(
        table.filter(pc.equal(table["status"], "ok")).replace_schema_metadata(None)
        for table in iter_latest(ledger, [*_COLUMNS, "generation", "status"])
    )
    rows = _numbered(_selected(rows, args))
    listings = []
    for generation in pc.unique(rows["generation"]).to_pylist():
        plan = ledger.read_plan(generation)
        here = rows.filter(pc.equal(rows["generation"], generation)).select([*_COLUMNS, "number"])
        listings.append(ImageBatchSource(here, plan.policy))
    return listings


def _of_input(args: argparse.Namespace, classes: Classes) -> list[ImageBatchSource]:
    """The images that localize would list at INPUT."""
    source = open_source(args.input, classes, policy=ReadPolicy(roots=tuple(args.local_root)))
    items = _numbered(_selected(source.items, args)).select([*_COLUMNS, "number"])
    return [ImageBatchSource(items, source.policy)]


def all_items(listings: list[ImageBatchSource]) -> pa.Table:
    """The items of all listings."""
    return pa.concat_tables([listing.items for listing in listings])


def _selected(rows: pa.Table, args: argparse.Namespace) -> pa.Table:
    rows = select(rows, limit=args.limit, sample=args.sample, seed=args.seed)
    if not rows.num_rows:
        raise UsageError(f"{args.input} holds no image that could be looked at")
    return rows


def _numbered(rows: pa.Table) -> pa.Table:
    """With the place of each image by its id, so that equal peaks are told apart alike in every listing."""
    numbers = pc.rank(rows["image_id"].combine_chunks(), tiebreaker="first").cast(pa.int64())
    return rows.append_column("number", numbers)
