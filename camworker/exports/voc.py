"""Pascal VOC: an XML file for each image, with 1-based, inclusive boxes.

A half-open box covers the pixels xmin to xmax - 1 counted from 0, which are xmin + 1 to xmax counted from 1.
Therefore the minima grow by one and the maxima stay. Corners are not rounded, as VOC's own files hold
fractions too, and subtracting 1 from the minima gives the exact box back. A box over the whole image that
stands for a map without a positive value is marked as difficult.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from camworker.exports.file_names import safe_name, xml_text
from camworker.exports.provenance import ExportInfo
from camworker.exports.weak_labels import LabelledImage


def write_voc(images: Iterable[LabelledImage], info: ExportInfo, folder: Path) -> None:
    """Write Annotations/NAME.xml for each image into the folder; its element `filename` is the image id."""
    annotations = folder / "Annotations"
    annotations.mkdir(parents=True)
    for image in images:
        text = "".join(_annotation(image, info))
        with open(annotations / f"{safe_name(image.image_id)}.xml", "x", encoding="utf-8") as file:
            file.write(text)


def _annotation(image: LabelledImage, info: ExportInfo) -> Iterator[str]:
    yield (
        "<annotation>\n"
        f"  <filename>{xml_text(image.image_id)}</filename>\n"
        "  <source>\n"
        "    <database>weak labels by camworker</database>\n"
        f"    <annotation>{xml_text(f'{info.recipe}, {info.labels}, {info.box_rule}')}</annotation>\n"
        "  </source>\n"
        f"  <size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>\n"
        "  <segmented>0</segmented>\n"
    )
    for label, (xmin, ymin, xmax, ymax), fallback in zip(
        image.labels, image.boxes, image.fallback, strict=True
    ):
        corners = {"xmin": xmin + 1, "ymin": ymin + 1, "xmax": xmax, "ymax": ymax}
        box = "".join(f"<{name}>{_number(value)}</{name}>" for name, value in corners.items())
        yield (
            "  <object>\n"
            f"    <name>{xml_text(info.classes[label])}</name>\n"
            "    <pose>Unspecified</pose>\n"
            "    <truncated>0</truncated>\n"
            f"    <difficult>{int(fallback)}</difficult>\n"
            f"    <bndbox>{box}</bndbox>\n"
            "  </object>\n"
        )
    yield "</annotation>\n"


def _number(value: float) -> str:
    # Whole numbers have no decimal point, for readers that expect integers as in the VOC devkit.
    return str(int(value)) if value.is_integer() else repr(value)
