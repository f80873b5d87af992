"""Names in an export: safe file names, distinct class names, and text that XML can hold."""

import hashlib
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.images.formats import IMAGE_EXTENSIONS

_READABLE: Final = 80  # maximum number of characters of an image id in the name of its file
_HASH_BYTES: Final = 10  # among a hundred million ids, two share these 80 bits with probability 4e-9
# Programs that train on an export do not recognize files with these extensions as images.
_UNCOMMON: Final = (".jpe", ".jfif", ".avif")
_EXTENSIONS: Final = frozenset(IMAGE_EXTENSIONS).difference(_UNCOMMON)

# Characters that XML 1.0 cannot represent, not even as a character reference (section 2.2).
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def safe_name(image_id: str) -> str:
    """Return a file name without extension for an image id: 20 to 101 of the characters a-z, 0-9 and _.

    Different ids get different names, also on file systems that ignore case and whatever the extension is,
    because the name ends in 80 bits of the id's BLAKE2b hash. The part before the hash is for people.
    """
    readable = re.sub("[^a-z0-9]+", "_", image_id.lower()).strip("_")[-_READABLE:].lstrip("_")
    digest = hashlib.blake2b(image_id.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"{readable}_{digest}" if readable else digest


def image_file_name(image_id: str) -> str:
    """Return `safe_name` with the extension of the id, or with .jpg if that is no extension of an image."""
    extension = PurePosixPath(image_id).suffix.lower()
    return safe_name(image_id) + (extension if extension in _EXTENSIONS else ".jpg")


def distinct_names(classes: Classes) -> tuple[str, ...]:
    """Return the class names; those that several classes share get the index appended: "crane (134)"."""
    names = list(classes.names)
    while len(set(names)) < len(names):  # repeated in case a class is called "crane (134)"
        counts = Counter(names)
        names = [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]
    return tuple(names)


def check_xml_names(names: tuple[str, ...], format_name: str) -> None:
    """Check that XML can hold every class name.

    Args:
        names: The class names.
        format_name: Name of the export format, for the message.

    Raises:
        UsageError: A name has characters that XML cannot represent.
    """
    for name in names:
        if _NOT_XML.search(name):
            raise UsageError(
                f"the class name {name!r} has characters that XML, and therefore {format_name}, cannot hold: "
                "leave this class out or choose another format",
                parameter="classes",
            )


def xml_text(text: str) -> str:
    """Escape text between two tags. Characters that XML cannot hold become U+FFFD."""
    # An XML parser would read a bare carriage return as a line feed.
    return escape(_NOT_XML.sub("\ufffd", text), {"\r": "&#13;"})


def xml_attribute(text: str) -> str:
    """Escape and quote the value of an attribute. Characters that XML cannot hold become U+FFFD."""
    return quoteattr(_NOT_XML.sub("\ufffd", text))
