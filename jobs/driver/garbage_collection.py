"""The garbage collector of the processes that import torch and Ray."""

import gc
from typing import Final

# Importing torch and Ray creates several hundred thousand objects that live as long as the process. With
# Python's default threshold the collector scans them over and over, which costs start-up half a second.
_THRESHOLD: Final = 50_000


def collect_garbage_less_often() -> None:
    """Raise the threshold of Python's garbage collector; call this before torch and Ray are imported."""
    gc.set_threshold(_THRESHOLD, *gc.get_threshold()[1:])
