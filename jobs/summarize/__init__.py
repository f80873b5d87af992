"""Judge predictions by truth: parts are tallied where they lie, in parallel, and the tallies merged."""

from jobs.summarize.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
