"""What one worker does: images in, class activation maps and boxes out. No Ray, no command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camworker.inference.localizer import Localizer

__version__ = "0.1.0"
__all__ = ["Localizer", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing the package must stay cheap: torch is loaded by whoever asks for the Localizer.
    if name == "Localizer":
        from camworker.inference.localizer import Localizer

        return Localizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
