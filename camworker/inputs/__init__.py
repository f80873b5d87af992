"""List the items of an INPUT and read their bytes."""

from camworker.inputs.read_policy import ReadPolicy

__all__ = ["ReadPolicy"]
