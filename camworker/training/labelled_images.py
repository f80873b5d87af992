"""INPUT -> labelled images to learn from: which classes there are, and which images are held back."""

import json
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Final

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
    """Images with labels (listing.items, schema ITEMS). unlabelled: how many had none and were left out."""

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
    """Read labelled images: a folder for each class, or a table or folder with labels beside it.

    Labels are those of image_labels (Parquet or CSV: image_id, label), else of the table's column
    label, else the first folder of an image's path. class_names: a text file, a name a line, in label
    order; default the sorted distinct labels (of integers: Hugging Face's names, or the numbers).
    policy: as open_source takes it. Raises UsageError for what cannot be learnt from: no labels, one
    class, several labels where one is expected.
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
        raise UsageError(f"{location} has one class, {classes.names[0]!r}: a network learns from two or more")
    counts = pc.list_value_length(listing.items["labels"]).to_numpy()
    if not multi_label:
        if (counts > 1).any():
            twice = listing.items["image_id"][int((counts > 1).argmax())].as_py()
            raise UsageError(f"{twice!r} has {counts.max()} labels: --multi-label learns from several")
        listing = replace(listing, items=listing.items.filter(pa.array(counts == 1)))
    if not counts.any():
        raise UsageError(f"{location}: no image has a label")
    return Examples(listing, classes, int((counts == 0).sum()) if not multi_label else 0)


def read_class_names(path: str) -> Classes:
    """Class names from a text file, a name a line, in the order of the labels. Raises UsageError."""
    try:
        names = read_uri(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"class names cannot be read: {error}") from error
    while names and not names[-1].strip():
        names.pop()
    if not names or not all(name.strip() for name in names):
        raise UsageError(f"{path}: a class name a line is needed, and no empty line between them")
    return Classes(tuple(name.strip() for name in names))


def held_back(items: pa.Table, share: float, seed: int) -> NDArray[np.bool_]:
    """Which images to keep from training: of each class the share with the smallest hash(seed, image_id).

    An image belongs to its first label's class. A class of two or more images has one on either side.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, labels in enumerate(items["labels"].to_pylist()):
        groups[labels[0] if labels else -1].append(index)
    image_ids = items["image_id"].to_pylist()
    held = np.zeros(items.num_rows, bool)
    for group in groups.values():
        group.sort(key=lambda index: sample_hash(seed, image_ids[index]))
        count = round(share * len(group))
        if share and len(group) > 1:
            count = min(max(count, 1), len(group) - 1)
        held[group[:count]] = True
    return held


def manifest(items: pa.Table, classes: Classes) -> pa.Table:
    """Items as a table that localize takes as INPUT (image_id, uri, label: names).

    Of images inside Parquet there is no uri: there it serves as --image-labels.
    """
    names = [[classes.names[label] for label in labels] for labels in items["labels"].to_pylist()]
    columns = {"image_id": items["image_id"], "uri": items["uri"], "label": pa.array(names)}
    if items["source_row"].null_count < items.num_rows:
        del columns["uri"]
    return pa.table(columns)


def _parquet_below(path: str) -> list[str]:
    keys = [entry.key for entry in LocalStore(path).list()]
    return [key for key in keys if key.lower().endswith(".parquet")]


def _labelled_by_folder(
    listing: ItemListing[pa.Table], classes: Classes | None, location: str
) -> tuple[ItemListing[pa.Table], Classes]:
    image_ids = listing.items["image_id"].to_pylist()
    if listing.policy.tables or any("/" not in image_id for image_id in image_ids):
        raise UsageError(
            f"{location} has no labels: a folder for each class, a column 'label' or --image-labels is needed"
        )
    folders = [image_id.split("/", 1)[0] for image_id in image_ids]
    classes = classes or Classes(tuple(sorted(set(folders))))
    indices = classes.indices(pa.array(folders), f"{location}, folders")
    labels = pa.array([[index] for index in indices], ITEMS.field("labels").type)
    return replace(listing, items=listing.items.set_column(_LABELS, ITEMS.field(_LABELS), labels)), classes


def _classes_of(tables: list[str]) -> Classes:
    """The classes that tables speak of, by their column label."""
    chunks, names = [], None
    for table in tables:
        column = read_columns(table, ["label"])["label"]
        while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pc.list_flatten(column)
        chunks += pc.unique(column).drop_null().to_pylist()
        names = names or _hugging_face_names(table)
    distinct = sorted(set(chunks), key=lambda label: (str(type(label)), label))
    if not distinct:
        raise UsageError(f"{tables[0]}: the column 'label' is empty")
    if all(isinstance(label, str) for label in distinct):
        return Classes(tuple(distinct))
    if names and all(isinstance(label, int) for label in distinct):
        return Classes(tuple(names))
    if not all(float(label).is_integer() and label >= 0 for label in distinct):
        raise UsageError(f"{tables[0]}: labels are class names or indices from 0")
    return Classes(tuple(map(str, range(int(max(distinct)) + 1))))


def _hugging_face_names(table: str) -> list[str] | None:
    """The names that a data set of Hugging Face gives to its integer labels, in the file's metadata."""
    if not table.lower().endswith(".parquet"):
        return None
    with open(table, "rb") as file:
        metadata = open_parquet(file).schema_arrow.metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
        return [str(name) for name in feature.get("feature", feature)["names"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
