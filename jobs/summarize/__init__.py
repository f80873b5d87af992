"""Evaluate predictions by ground truth: parts are tallied in parallel and the tallies are merged."""

from jobs.summarize.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
