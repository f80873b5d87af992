"""Export the current rows of an output to a file or folder in a named format, completely or not at all."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from camworker.boxes.rules import check_rule, uses_refined
from camworker.errors import UsageError
from camworker.exports.coco import write_coco_dataset, write_coco_results
from camworker.exports.file_names import check_xml_names, distinct_names
from camworker.exports.hugging_face import write_hugging_face
from camworker.exports.label_studio import write_label_studio
from camworker.exports.png_masks import write_png_masks
from camworker.exports.provenance import ExportInfo, MaskEncoding
from camworker.exports.selection import Counts, LabelSelection
from camworker.exports.voc import write_voc
from camworker.exports.weak_labels import LabelledImage, labelled_images
from camworker.exports.yolo import write_yolo
from camworker.ledger.snapshot import Snapshot
from camworker.storage.atomic import write_then_rename


@dataclass(frozen=True, slots=True)
class _Format:
    """How a format is written.

    Attributes:
        write: Writes the images to a new path.
        is_file: Whether the export is one file and not a folder.
        with_bytes: Whether the export contains the image files.
        is_xml: Whether class names are written as XML.
        masks: Whether the format holds masks ("yes"), nothing else ("only"), or boxes alone ("no").
    """

    write: Callable[[Iterator[LabelledImage], ExportInfo, Path], None]
    is_file: bool = False
    with_bytes: bool = False
    is_xml: bool = False
    masks: Literal["yes", "only", "no"] = "no"


_FORMATS: Final = {
    "coco": _Format(write_coco_dataset, is_file=True, masks="yes"),
    "coco-results": _Format(write_coco_results, is_file=True, masks="yes"),
    "yolo": _Format(write_yolo, with_bytes=True, masks="yes"),
    "voc": _Format(write_voc, is_xml=True),
    "label-studio": _Format(write_label_studio, is_xml=True),
    "hugging-face": _Format(write_hugging_face, with_bytes=True),
    "masks": _Format(write_png_masks, masks="only"),
}


def export(
    snapshot: Snapshot,
    format_name: str,
    target: Path,
    selection: LabelSelection,
    on_image: Callable[[Counts], None] = lambda counts: None,
    *,
    mask_encoding: MaskEncoding = "polygons",
) -> Counts:
    """Write the selected boxes or masks of the current rows to a new file or folder.

    Until the export is complete, it lies next to the target under a name that begins with a dot.

    Args:
        snapshot: What the recipe holds.
        format_name: One of `FORMATS`.
        target: The file or folder to create; an empty folder is replaced.
        selection: Which boxes or masks are exported.
        on_image: Called with the counts so far after each image.
        mask_encoding: How a COCO data set holds masks.

    Returns:
        What was exported, and what was left out and why.

    Raises:
        UsageError: The target cannot be written, or the rows or the format do not support the selection.
    """
    format_ = _FORMATS[format_name]
    _check_target(target, format_name)
    selection = _checked(selection, snapshot, format_name)
    info = _info(snapshot, selection, mask_encoding)
    if format_.is_xml:
        check_xml_names(info.names, format_name)
    counts = Counts()

    def images() -> Iterator[LabelledImage]:
        for image in labelled_images(snapshot, selection, counts, with_bytes=format_.with_bytes):
            yield image
            on_image(counts)

    with write_then_rename(target) as draft:
        format_.write(images(), info, draft)
        if selection.targets and not counts.known_labels:
            raise UsageError(
                "no image has known labels: localize with image labels, or export the predicted labels",
                parameter="targets",
            )
        _check_target(target, format_name)  # The export may have taken hours.
    return counts


def _checked(selection: LabelSelection, snapshot: Snapshot, format_name: str) -> LabelSelection:
    """Return the selection with the box rule in its canonical spelling.

    Raises:
        UsageError: The rows or the format do not support it.
    """
    if selection.ranks > snapshot.recipe.top_k:
        raise UsageError(
            f"the rows of this recipe have {snapshot.recipe.top_k} labels each: fewer than {selection.ranks}",
            parameter="top_labels",
        )
    _check_masks(selection, format_name)
    if selection.mask_threshold is not None:
        _check_refined(selection, snapshot, "masks", "masks")
    if selection.box_rule is None:
        return selection
    rule = check_rule(selection.box_rule, stored=True)
    if uses_refined(rule):
        _check_refined(selection, snapshot, f"boxes by {rule}", "box_rule")
    return replace(selection, box_rule=rule)


def _check_masks(selection: LabelSelection, format_name: str) -> None:
    masks = _FORMATS[format_name].masks
    if selection.mask_threshold is None:
        if masks == "only":
            raise UsageError(f"the format {format_name} holds masks and no boxes", parameter="masks")
        return
    if masks == "no":
        able = ", ".join(name for name, format_ in _FORMATS.items() if format_.masks != "no")
        raise UsageError(f"{format_name} holds boxes and no masks: choose {able}", parameter="masks")
    if selection.box_rule is not None:
        raise UsageError(
            "boxes are those around the masks: use either a box rule or masks", parameter="box_rule"
        )
    if selection.keep_fallback:
        raise UsageError("a map without a positive value has no mask to keep", parameter="fallback")


def _check_refined(selection: LabelSelection, snapshot: Snapshot, what: str, parameter: str) -> None:
    snapshot.check()
    shape = snapshot.refined_shape()
    if shape is None:
        raise UsageError(
            f"{what} are made from refined maps, which these rows do not have: localize with refinement",
            parameter=parameter,
        )
    if not selection.targets and selection.ranks > shape.k:
        raise UsageError(
            f"{what} are made from refined maps, and these rows have one of the best label only: "
            "choose one label, or localize with the refined maps of all labels",
            parameter="top_labels",
        )


def _info(snapshot: Snapshot, selection: LabelSelection, mask_encoding: MaskEncoding) -> ExportInfo:
    names = distinct_names(snapshot.recipe.classes)
    masks = selection.mask_threshold is not None
    classes = range(len(names)) if selection.classes is None else sorted(selection.classes)
    return ExportInfo(
        recipe=snapshot.ledger.recipe,
        network=snapshot.recipe.network,
        box_rule="mask" if masks else selection.box_rule or snapshot.recipe.box_rule,
        labels="known" if selection.targets else f"predicted, rank 1 to {selection.ranks}",
        min_score=selection.min_score,
        mask_threshold=selection.mask_threshold,
        mask_encoding=mask_encoding,
        classes={index: names[index] for index in classes},
    )


def _check_target(target: Path, format_name: str) -> None:
    """Raise UsageError if an export of this format cannot be written to the target."""
    if _FORMATS[format_name].is_file and target.is_dir():
        raise UsageError(
            f"{target} is a folder, but {format_name} is one file: name a file such as {target}/boxes.json"
        )
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} exists already, and an export does not replace anything: name a new path")
    parent = next(path for path in target.absolute().parents if os.path.lexists(path))
    if not parent.is_dir():
        raise UsageError(f"{target} cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{target} cannot be written: there is no permission to write in {parent}")
