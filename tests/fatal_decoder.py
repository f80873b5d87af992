"""A decoder with a fatal bug, for tests: it calls abort() on marked bytes and sleeps on others.

As a script: the child of careful decoding with that decoder. Imported as sitecustomize (see
test_careful.py): puts it into every process that decodes.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from types import ModuleType
from typing import Any

ABORT, HANG = b"this one is fatal", b"this one hangs"


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


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any) -> None:
        self._real = real

    def create_module(self, spec: Any) -> Any:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        break_decoder(module)


class Finder(importlib.abc.MetaPathFinder):
    """Breaks camworker.images as it is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "camworker.images":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder())
    from camworker.careful import main

    main()
