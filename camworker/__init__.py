"""Class activation maps and boxes at scale: a library without Ray and without a command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camworker.inference.localizer import Localizer

__version__ = "0.1.0"
__all__ = ["Localizer", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing the package has to stay cheap, so that torch is loaded only on the first use of Localizer.
    if name == "Localizer":
        from camworker.inference.localizer import Localizer

        return Localizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
