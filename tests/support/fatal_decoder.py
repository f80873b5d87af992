"""A decoder with a fatal bug: it calls abort() on bytes with one mark and hangs on bytes with another.

As a script it is the child process of the isolated decoder with this bug. A sitecustomize module that calls
`install` gives the bug to every process that decodes.
"""

import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from support.import_hook import on_import
from support.paths import python_path

ABORT, HANG = b"this one is fatal", b"this one hangs"


def install() -> None:
    """Install the bug when camworker.images.decode is imported."""
    on_import("camworker.images.decode", break_decoder)


def install_in_children(site: Path) -> str:
    """Write a sitecustomize module that installs the bug, and return a PYTHONPATH that finds it."""
    site.mkdir()
    (site / "sitecustomize.py").write_text("from support import fatal_decoder; fatal_decoder.install()")
    return python_path(site)


def break_decoder(images: ModuleType) -> None:
    """Replace the decoder of camworker.images.decode by one with the bug."""
    decode = images.decode

    def fatal(data: bytes) -> Any:
        if ABORT in data:
            os.abort()
        if HANG in data:
            time.sleep(3600)
        return decode(data)

    images.decode = fatal  # type: ignore[attr-defined]


if __name__ == "__main__":
    install()
    from camworker.images.isolated_decoder import run_child

    run_child()
