"""Predict labels, class activation maps and boxes of images into Parquet files; run again to resume."""

from jobs.localize.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
