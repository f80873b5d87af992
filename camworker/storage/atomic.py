"""Writing a local file or folder under a temporary name and renaming it when it is complete."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camworker.storage.local import fsync_path


@contextmanager
def write_then_rename(target: Path, *, suffix: str = ".draft", durable: bool = False) -> Iterator[Path]:
    """Yield a hidden path next to the target, and rename what the block creates there to the target.

    The target is either complete or absent: if the block raises, the draft is deleted, and a killed process
    leaves only the hidden draft. The rename replaces a file or an empty folder, so a block that must not
    replace anything checks that at its end.

    Args:
        target: The file or folder to create; missing parents are created.
        suffix: The end of the draft's name, for libraries that require a certain one.
        durable: Whether the target has to survive a power failure; every file of it is synced then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}{suffix}")
    try:
        yield draft
        if durable:
            for path in (*draft.rglob("*"), draft):
                fsync_path(path)
        draft.rename(target)
        if durable:
            fsync_path(target.parent)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        draft.unlink(missing_ok=True)
