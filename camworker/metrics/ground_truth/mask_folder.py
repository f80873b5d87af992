"""Ground truth from a folder of PNG masks: MASKS/CLASS/NAME.png, ignored pixels in NAME.ignore.png."""

import os
from typing import Final

import pyarrow as pa

from camworker.errors import UsageError
from camworker.metrics.ground_truth.annotations import Annotations, By, counted, labels_by, strings

_IGNORE: Final = ".ignore"


def read_mask_folder(path: str, keys: list[str], by: By) -> Annotations:
    """The masks among keys, which are relative to the folder path.

    The first folder is the label; what follows, less .png, is the image_id, a stem: masks do not say
    which extension their image has. Pixels are read later, by masks.read_mask.
    Notes: other_files (files that are no .png, left out).
    Raises UsageError for a mask outside a class's folder, an ignore region without a mask.
    """
    masks, ignores = [], {}
    for key in sorted(key for key in keys if key.lower().endswith(".png")):
        if "/" not in key:
            raise UsageError(f"{path}: {key!r} lies in no class's folder: masks are CLASS/NAME.png")
        stem = key[: -len(".png")]
        if stem.lower().endswith(_IGNORE):
            ignores[stem[: -len(_IGNORE)]] = os.path.join(path, key)
        else:
            masks.append((stem, os.path.join(path, key)))
    stems = [stem for stem, _ in masks]
    if alone := sorted(ignores.keys() - set(stems)):
        raise UsageError(f"{ignores[alone[0]]} has no mask beside it: add {alone[0]}.png, empty if need be")
    labels, image_ids = zip(*(stem.split("/", 1) for stem in stems), strict=True) if stems else ((), ())
    table = pa.table(
        {
            "image_id": strings(image_ids, path),
            "label": labels_by(strings(labels, path), by, f"{path}, the folders' names"),
            "mask": strings([mask for _, mask in masks], path),
            "ignore": strings([ignores.get(stem) for stem in stems], path),
        }
    )
    return Annotations(table, counted(other_files=len(keys) - len(masks) - len(ignores)), stems=True)
