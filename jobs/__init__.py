"""The command line and the work on a Ray cluster: one module or package per command."""
