"""Where things may lie: at an s3:// URI or a local path, and nowhere else; credentials never in either.

Both are plain text: nothing in a key or a path is parsed, unquoted or normalised as a URL.
"""

import os
import re
from collections.abc import Sequence
from typing import Final

from camworker.errors import UsageError

SCHEME: Final = "s3://"

# As RE2 and re both read them: tables are searched by pyarrow.
ANY_SCHEME: Final = r"^[A-Za-z][A-Za-z0-9+.\-]*://"
# s3://key:secret@bucket/..., and what signed URLs carry.
CREDENTIALS: Final = (
    r"^[A-Za-z][A-Za-z0-9+.\-]*://([^/]*@|.*[?&](?i:x-amz-signature|x-amz-credential|x-amz-security-token"
    r"|awsaccesskeyid|signature|sig)=)|^s3://[^/]*:"
)


def is_s3(location: str) -> bool:
    """Whether it lies in S3 and not on this machine."""
    return location.startswith(SCHEME)


def check_location_form(location: str, where: str = "") -> None:
    """Raises UsageError for another scheme than s3:// and for credentials, which it does not repeat.

    where: what the message starts with, such as a file and its row.
    """
    if re.search(CREDENTIALS, location):
        raise UsageError(
            f"{where}a URI holds credentials or a signature: write s3://bucket/key, and leave credentials to "
            "AWS_PROFILE, the environment or the machine's role"
        )
    scheme = re.match(ANY_SCHEME, location)
    if scheme and not is_s3(location):
        raise UsageError(
            f"{where}{scheme[0]}... cannot be read or written: name a local path or s3://bucket/key"
        )


def split(uri: str) -> tuple[str, str]:
    """s3://bucket/some/key -> (bucket, some/key). Raises UsageError without a bucket."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UsageError(f"{uri} names no bucket: s3://bucket/prefix")
    if "@" in bucket or ":" in bucket:
        check_location_form(uri)
    return bucket, key


def whole_location(location: str) -> str:
    """The absolute path, or the s3:// URI without a slash in the end. Raises as check_location_form."""
    check_location_form(location)
    if not is_s3(location):
        return os.path.abspath(location)
    split(location)
    return location.rstrip("/")


def is_below(location: str, folder: str) -> bool:
    """Whether a whole location is folder or lies in it, by their names."""
    return location == folder or location.startswith(f"{folder.rstrip('/')}/")


def find_outside(paths: Sequence[str], roots: Sequence[str]) -> int | None:
    """The place of the first absolute path that lies below none of roots (absolute); None: all do.

    By its name as it is, or where symbolic links lead to it: a path that a link below a root leads out
    of it is the doing of whoever owns the root.
    """
    real_roots = [os.path.realpath(root) for root in roots]
    real: dict[str, str] = {}
    for place, path in enumerate(paths):
        if any(is_below(path, root) for root in roots):
            continue
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        if not any(is_below(os.path.join(real[folder], name), root) for root in real_roots):
            return place
    return None
