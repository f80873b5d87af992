"""Names in an export: files that cannot leave its folder, classes told apart, text in XML and in YAML."""

import hashlib
import json
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from camworker.classes import Classes
from camworker.errors import UsageError
from camworker.images.formats import IMAGE_EXTENSIONS

_READABLE: Final = 80  # characters of an image id that its file's name shows at most
_HASH_BYTES: Final = 10  # of a hundred million ids two share 80 bits with probability 4e-9
# Programs that train on an export do not take files with these extensions for images.
_UNCOMMON: Final = (".jpe", ".jfif", ".avif")
_EXTENSIONS: Final = frozenset(IMAGE_EXTENSIONS).difference(_UNCOMMON)

# What XML 1.0 has no way to write, not even as a character reference (section 2.2).
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def safe_name(image_id: str) -> str:
    """A file name without extension for an image id: 20 to 101 of the characters a-z, 0-9 and _.

    Different ids have different names, on file systems that fold case and beside any extension
    too: the name ends in 80 bits of the id's BLAKE2b hash. What stands before only reads well.
    """
    readable = re.sub("[^a-z0-9]+", "_", image_id.lower()).strip("_")[-_READABLE:].lstrip("_")
    digest = hashlib.blake2b(image_id.encode(), digest_size=_HASH_BYTES).hexdigest()
    return f"{readable}_{digest}" if readable else digest


def image_file_name(image_id: str) -> str:
    """safe_name with the extension of the id; .jpg where that is none of an image."""
    extension = PurePosixPath(image_id).suffix.lower()
    return safe_name(image_id) + (extension if extension in _EXTENSIONS else ".jpg")


def distinct_names(classes: Classes) -> tuple[str, ...]:
    """The class names, with the index behind those that two classes share: "crane (134)"."""
    names = list(classes.names)
    while len(set(names)) < len(names):  # again, should a class be called "crane (134)"
        counts = Counter(names)
        names = [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]
    return tuple(names)


def check_xml_names(names: tuple[str, ...], form: str) -> None:
    """Raises UsageError when a class name has characters that XML cannot hold. form: of the export."""
    for name in names:
        if _NOT_XML.search(name):
            raise UsageError(
                f"the class name {name!r} has characters that XML, and so {form}, cannot hold: "
                "leave the class out with --classes, or choose another format"
            )


def xml_text(text: str) -> str:
    """Text between two tags. What XML cannot hold becomes U+FFFD."""
    # A bare carriage return would be read back as a line feed.
    return escape(_NOT_XML.sub("\ufffd", text), {"\r": "&#13;"})


def xml_attribute(text: str) -> str:
    """The value of an attribute, in its quotes. What XML cannot hold becomes U+FFFD."""
    return quoteattr(_NOT_XML.sub("\ufffd", text))


def yaml_string(text: str) -> str:
    """A double-quoted YAML scalar in ASCII: JSON, but for the escapes of what lies beyond it."""
    # YAML does not join the two surrogates that JSON makes of a character beyond U+FFFF.
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub("[^\x20-\x7e]", lambda match: f"\\U{ord(match[0]):08x}", quoted)
