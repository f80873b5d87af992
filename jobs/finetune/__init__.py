"""Fine-tune a network from image labels; the result is a package that localize takes as --weights."""

from jobs.finetune.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
