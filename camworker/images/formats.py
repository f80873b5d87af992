"""The image formats that camworker reads: file name extensions and signatures."""

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """An image file format.

    Attributes:
        name: Name of the format in messages; in capitals it is Pillow's name.
        extensions: File name extensions in lower case, with the dot.
        signature: Regular expression for the first bytes of a file (with `re.DOTALL`).
    """

    name: str
    extensions: tuple[str, ...]
    signature: bytes


# Every format in this list has a decoder that is meant for untrusted images. Pillow supports more formats,
# some of them unsafe: for example, it opens EPS files with Ghostscript.
IMAGE_FORMATS: Final = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff"),
    ImageFormat("PNG", (".png",), rb"\x89PNG\r\n\x1a\n"),
    ImageFormat("GIF", (".gif",), rb"GIF8[79]a"),
    ImageFormat("WebP", (".webp",), rb"RIFF.{4}WEBP"),
    ImageFormat("BMP", (".bmp",), rb"BM"),
    ImageFormat("TIFF", (".tif", ".tiff"), rb"II\*\x00|MM\x00\*"),
    ImageFormat("AVIF", (".avif",), rb".{4}ftypavi[fs]"),
)
IMAGE_EXTENSIONS: Final = tuple(extension for kind in IMAGE_FORMATS for extension in kind.extensions)


def detect_format(data: bytes) -> ImageFormat | None:
    """Return the format of an image file by its first bytes, or None if it is not in `IMAGE_FORMATS`."""
    return next((kind for kind in IMAGE_FORMATS if re.match(kind.signature, data, re.DOTALL)), None)
