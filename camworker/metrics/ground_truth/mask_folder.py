"""Ground truth from a folder of PNG masks: CLASS/NAME.png, with ignored pixels in CLASS/NAME.ignore.png."""

import os
from typing import Final

import pyarrow as pa

from camworker.errors import UsageError
from camworker.metrics.ground_truth.annotations import (
    Annotations,
    By,
    convert_labels,
    nonzero_notes,
    string_column,
)

_IGNORE: Final = ".ignore"


def read_mask_folder(path: str, keys: list[str], by: By) -> Annotations:
    """List the masks of a folder; `masks.read_mask` reads their pixels later.

    The first folder of a key is the label. The rest without .png is the image id, a stem, because a mask does
    not say which extension its image has. Notes: other_files (files other than .png, left out).

    Args:
        path: The folder.
        keys: Paths of its files, relative to it.
        by: What identifies a class.

    Raises:
        UsageError: A mask is not in the folder of a class, or there are ignored pixels without a mask.
    """
    masks, ignores = [], {}
    for key in sorted(key for key in keys if key.lower().endswith(".png")):
        if "/" not in key:
            raise UsageError(f"{path}: {key!r} is not in the folder of a class: masks are CLASS/NAME.png")
        stem = key[: -len(".png")]
        if stem.lower().endswith(_IGNORE):
            ignores[stem[: -len(_IGNORE)]] = os.path.join(path, key)
        else:
            masks.append((stem, os.path.join(path, key)))
    stems = [stem for stem, _ in masks]
    if orphans := sorted(ignores.keys() - set(stems)):
        raise UsageError(
            f"{ignores[orphans[0]]} has no mask: add {orphans[0]}.png, an empty one if there is no object"
        )
    labels, image_ids = zip(*(stem.split("/", 1) for stem in stems), strict=True) if stems else ((), ())
    table = pa.table(
        {
            "image_id": string_column(image_ids, path),
            "label": convert_labels(string_column(labels, path), by, f"{path}, the folders' names"),
            "mask": string_column([mask for _, mask in masks], path),
            "ignore": string_column([ignores.get(stem) for stem in stems], path),
        }
    )
    return Annotations(table, nonzero_notes(other_files=len(keys) - len(masks) - len(ignores)), stems=True)
