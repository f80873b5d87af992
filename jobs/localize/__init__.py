"""Write top-5 labels, class activation maps and boxes of every image to Parquet; run again to resume."""

from jobs.localize.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
