"""Class activation maps and boxes at scale: a library without Ray and without a command line."""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from camworker.dataset import latest
    from camworker.inference.localizer import Localizer

__version__ = "0.1.0"
__all__ = ["Localizer", "__version__", "latest"]

# Importing the package has to stay cheap: the modules of these names load torch or pyarrow.
_LAZY: Final = {"Localizer": "camworker.inference.localizer", "latest": "camworker.dataset"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
