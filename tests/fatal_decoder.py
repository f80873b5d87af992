"""A decoder with a fatal bug, for tests: it calls abort() on marked bytes and sleeps on others.

As a script: the child of careful decoding with that decoder. install(), in a sitecustomize, puts it into
every process that decodes.
"""

import os
import time
from types import ModuleType
from typing import Any

from import_hook import on_import

ABORT, HANG = b"this one is fatal", b"this one hangs"


def install() -> None:
    """Put the bug into camworker.images, where that is imported later."""
    on_import("camworker.images", break_decoder)


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
    from camworker.careful import main

    main()
