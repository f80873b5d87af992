"""Exports: from the current rows of an output to a file or folder of a named format, whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from camworker.boxes.rules import check_rule
from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.exports import coco, hugging_face, label_studio, voc, yolo
from camworker.exports.file_names import check_xml_names, distinct_names
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import Counts, LabelledImage, LabelSelection, labelled_images
from camworker.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class _Format:
    """How a format is written. is_file: one file, else a folder. with_bytes: it holds the images too."""

    write: Callable[[Iterator[LabelledImage], ExportInfo, Path], None]
    is_file: bool = False
    with_bytes: bool = False
    is_xml: bool = False


_FORMATS: Final = {
    "coco": _Format(coco.write_dataset, is_file=True),
    "coco-results": _Format(coco.write_results, is_file=True),
    "yolo": _Format(yolo.write, with_bytes=True),
    "voc": _Format(voc.write, is_xml=True),
    "label-studio": _Format(label_studio.write, is_xml=True),
    "hugging-face": _Format(hugging_face.write, with_bytes=True),
}


def export(
    ledger: Ledger,
    name: str,
    target: Path,
    choice: LabelSelection,
    on_image: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Write the chosen boxes of the current rows to target, in the format of that name (see FORMATS).

    Until it is whole, the export lies beside target under a name that begins with a dot. on_image is
    told after each image. Raises UsageError where something that was asked for cannot be had.
    """
    form = _FORMATS[name]
    _check_target(target, name)
    recipe = ledger.read_recipe()
    choice = _checked(choice, recipe)
    about = _about(ledger, recipe, choice)
    if form.is_xml:
        check_xml_names(about.names, name)
    counts = Counts()

    def watched() -> Iterator[LabelledImage]:
        for image in labelled_images(ledger, recipe, choice, counts, with_bytes=form.with_bytes):
            yield image
            on_image(counts)

    with _draft(target, name) as draft:
        form.write(watched(), about, draft)
        if choice.targets and not counts.known_labels:
            raise UsageError(
                "no image has known labels: localize with --image-labels, or export without --targets"
            )
    return counts


def _checked(choice: LabelSelection, recipe: dict[str, Any]) -> LabelSelection:
    if choice.ranks > recipe["top_k"]:
        raise UsageError(f"these rows hold the top {recipe['top_k']}: the box rank is at most that")
    if choice.box_rule is None:
        return choice
    return replace(choice, box_rule=check_rule(choice.box_rule, maxboxacc=True))


def _about(ledger: Ledger, recipe: dict[str, Any], choice: LabelSelection) -> ExportInfo:
    names = distinct_names(Classes.of_recipe(recipe))
    chosen = range(len(names)) if choice.classes is None else sorted(choice.classes)
    return ExportInfo(
        recipe=ledger.recipe,
        network=recipe["network"],
        box_rule=choice.box_rule or recipe["box_rule"],
        labels="known" if choice.targets else f"predicted, rank 1 to {choice.ranks}",
        min_score=choice.min_score,
        classes={index: names[index] for index in chosen},
    )


def _check_target(target: Path, name: str) -> None:
    """Raises UsageError where an export of this format cannot be put."""
    if _FORMATS[name].is_file and target.is_dir():
        raise UsageError(f"{target} is a folder, and {name} is a file: name one, such as {target}/boxes.json")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} exists already, and an export replaces nothing: name another place")
    above = next(path for path in target.absolute().parents if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"{target} cannot be written: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{target} cannot be written: there is no permission to write in {above}")


@contextlib.contextmanager
def _draft(target: Path, name: str) -> Iterator[Path]:
    """A path beside target that becomes target at the end; an error in the block removes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.draft")
    try:
        yield draft
        _check_target(target, name)  # it took a while
        draft.rename(target)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        draft.unlink(missing_ok=True)
