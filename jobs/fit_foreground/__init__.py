"""Fit the foreground head of a network package to images without boxes."""

from jobs.fit_foreground.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
