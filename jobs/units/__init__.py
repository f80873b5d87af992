"""The units that speak for each class, and the image patches that excite them most: a table and a page."""

from jobs.units.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
