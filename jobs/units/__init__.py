"""Find the class-specific units of a network, and the image patches that activate them most."""

from jobs.units.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
