"""Run a command on a Ray cluster, by the Jobs API or as a RayJob of KubeRay, and follow it to its end."""

from jobs.submit.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
