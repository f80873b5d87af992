"""Read labelled images for training: their classes, and which of them are held back for validation."""

import json
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.inputs import ReadPolicy
from camworker.inputs.sampling import sample_hash
from camworker.inputs.sources import ItemListing, check_location, open_source
from camworker.inputs.tabular import column_types, read_columns
from camworker.schemas import ITEMS
from camworker.storage.local import LocalStore
from camworker.storage.parquet import open_parquet
from camworker.storage.uris import read_uri

_LABELS: Final = ITEMS.get_field_index("labels")


@dataclass(frozen=True)
class Examples:
    """Labelled images.

    Attributes:
        listing: The listed images; its items (schema ITEMS) have labels.
        classes: The classes of the labels.
        unlabelled: Number of images that were left out because they have no label.
    """

    listing: ItemListing[pa.Table]
    classes: Classes
    unlabelled: int


def read_examples(
    location: str,
    *,
    class_names: str | None = None,
    image_labels: str | None = None,
    id_column: str | None = None,
    multi_label: bool = False,
    policy: ReadPolicy = ReadPolicy(),
) -> Examples:
    """Read labelled images.

    Args:
        location: A folder with one folder per class, or a table, or a folder of tables.
        class_names: A text file with a class name per line, in the order of the labels. By default the
            classes are the sorted distinct labels; integer labels are named by Hugging Face metadata or by
            themselves.
        image_labels: A Parquet or CSV file with columns image_id and label. By default the labels are the
            column `label` of the table, or the first folder of an image's path.
        id_column: Name of the table's id column.
        multi_label: Accept several labels, or none, for an image.
        policy: Which files may be read, see `open_source`.

    Raises:
        UsageError: There are no labels, or only one class, or several labels where one is expected.
    """
    path = check_location(location)
    tables = [path] if os.path.isfile(path) else [os.path.join(path, key) for key in _parquet_below(path)]
    folders = image_labels is None and not any("label" in column_types(table) for table in tables)
    classes = read_class_names(class_names) if class_names else None
    if folders:
        items = open_source(location, classes or Classes(("none",)), id_column=id_column, policy=policy)
        listing, classes = _labelled_by_folder(items, classes, location)
    else:
        classes = classes or _classes_of([image_labels] if image_labels else tables)
        listing = open_source(
            location, classes, image_labels=image_labels, id_column=id_column, policy=policy
        )
    if len(classes) < 2 and not multi_label:
        raise UsageError(f"{location} has one class, {classes.names[0]!r}: training needs two or more")
    counts = pc.list_value_length(listing.items["labels"]).to_numpy()
    if not multi_label:
        if (counts > 1).any():
            twice = listing.items["image_id"][int((counts > 1).argmax())].as_py()
            raise UsageError(
                f"{twice!r} has {counts.max()} labels: train with several labels per image",
                parameter="multi_label",
            )
        listing = replace(listing, items=listing.items.filter(pa.array(counts == 1)))
    if not counts.any():
        raise UsageError(f"{location}: no image has a label")
    return Examples(listing, classes, int((counts == 0).sum()) if not multi_label else 0)


def read_class_names(path: str) -> Classes:
    """Read class names from a text file, one per line in the order of the labels.

    Raises:
        UsageError: The file cannot be read, or has an empty line between names.
    """
    try:
        names = read_uri(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"class names cannot be read: {error}") from error
    while names and not names[-1].strip():
        names.pop()
    if not names or not all(name.strip() for name in names):
        raise UsageError(f"{path}: expected one class name per line, without empty lines")
    return Classes(tuple(name.strip() for name in names))


def held_back(items: pa.Table, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Select the images that are held back from training, by class.

    Of each class, the images with the smallest hash of seed and image id are held back. An image counts for
    the class of its first label. A class of two or more images keeps at least one image on either side.

    Args:
        items: The images (schema ITEMS).
        fraction: The fraction of each class to hold back.
        seed: Another seed selects other images.

    Returns:
        Whether each image is held back.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, labels in enumerate(cast(list[list[int] | None], items["labels"].to_pylist())):
        groups[labels[0] if labels else -1].append(index)
    image_ids = cast(list[str], items["image_id"].to_pylist())
    held = np.zeros(items.num_rows, bool)
    for group in groups.values():
        group.sort(key=lambda index: sample_hash(seed, image_ids[index]))
        count = round(fraction * len(group))
        if fraction and len(group) > 1:
            count = min(max(count, 1), len(group) - 1)
        held[group[:count]] = True
    return held


def manifest(items: pa.Table, classes: Classes) -> pa.Table:
    """Return items as a manifest with columns image_id, uri and label (class names).

    Images stored in Parquet files have no column uri; for these the table can serve as image labels.
    """
    labels = cast(list[list[int]], items["labels"].to_pylist())
    names = [[classes.names[label] for label in image_labels] for image_labels in labels]
    has_uris = items["source_row"].null_count == items.num_rows
    table = items.select(["image_id", "uri"] if has_uris else ["image_id"])
    return table.append_column("label", pa.array(names)).replace_schema_metadata(None)


def _parquet_below(path: str) -> list[str]:
    keys = [entry.key for entry in LocalStore(path).list()]
    return [key for key in keys if key.lower().endswith(".parquet")]


def _labelled_by_folder(
    listing: ItemListing[pa.Table], classes: Classes | None, location: str
) -> tuple[ItemListing[pa.Table], Classes]:
    image_ids = cast(list[str], listing.items["image_id"].to_pylist())
    if listing.policy.tables or any("/" not in image_id for image_id in image_ids):
        raise UsageError(
            f"{location} has no labels: expected one folder per class, a column 'label' or a file of labels",
            parameter="image_labels",
        )
    folders = [image_id.split("/", 1)[0] for image_id in image_ids]
    classes = classes or Classes(tuple(sorted(set(folders))))
    indices = classes.resolve(pa.array(folders), f"{location}, folders")
    labels = pa.array([[index] for index in indices], ITEMS.field("labels").type)
    return replace(listing, items=listing.items.set_column(_LABELS, ITEMS.field(_LABELS), labels)), classes


def _classes_of(tables: list[str]) -> Classes:
    """Return the classes of the labels in these tables."""
    labels: set[Any] = set()
    names: list[str] | None = None
    for table in tables:
        column: Any = read_columns(table, ["label"])["label"]
        while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pc.list_flatten(column)
        labels.update(pc.unique(column).drop_null().to_pylist())
        names = names or _hugging_face_names(table)
    distinct = sorted(labels, key=lambda label: (str(type(label)), label))
    if not distinct:
        raise UsageError(f"{tables[0]}: the column 'label' is empty")
    if all(isinstance(label, str) for label in distinct):
        return Classes(tuple(distinct))
    if names and all(isinstance(label, int) for label in distinct):
        return Classes(tuple(names))
    if not all(float(label).is_integer() and label >= 0 for label in distinct):
        raise UsageError(f"{tables[0]}: labels must be class names or indices from 0")
    return Classes(tuple(map(str, range(int(max(distinct)) + 1))))


def _hugging_face_names(table: str) -> list[str] | None:
    """Return the names of integer labels from Hugging Face metadata in the file, if there are any."""
    if not table.lower().endswith(".parquet"):
        return None
    with open(table, "rb") as file:
        metadata = open_parquet(file).schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
        return [str(name) for name in feature.get("feature", feature)["names"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
