"""Run a command on a cluster: by Ray's Jobs API or as a RayJob of KubeRay; one that runs is followed."""

from jobs.submit.command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
