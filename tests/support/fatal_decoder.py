"""A decoder with a fatal bug, for tests: it calls abort() on marked bytes and sleeps on others.

As a script: the child of the isolated decoder with that decoder. install(), in a sitecustomize, puts it into
every process that decodes.
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
    """Put the bug into camworker.images, where that is imported later."""
    on_import("camworker.images.decode", break_decoder)


def install_in_children(site: Path) -> str:
    """Write a sitecustomize that installs the bug into site; return a PYTHONPATH that finds it."""
    site.mkdir()
    (site / "sitecustomize.py").write_text("from support import fatal_decoder; fatal_decoder.install()")
    return python_path(site)


def break_decoder(images: ModuleType) -> None:
    """Put the bug into camworker.images."""
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
    from camworker.images.isolated_decoder import main

    main()
