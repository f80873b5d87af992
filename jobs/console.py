"""Text, JSON and exit codes of a command."""

import json
import sys
from collections.abc import Mapping
from typing import Final

DONE: Final = 0
INCOMPLETE: Final = 3


class Console:
    """The output streams of one command.

    Results go to standard output, or to standard error if standard output is reserved for the JSON object.

    Args:
        as_json: Whether standard output ends with one JSON object and holds nothing else.
        verbose: Whether to show the logs of the workers too.
    """

    def __init__(self, *, as_json: bool, verbose: bool = False) -> None:
        self.as_json = as_json
        self.verbose = verbose

    def out(self, text: str = "") -> None:
        """Print a line of the result."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def err(self, text: str) -> None:
        """Print a line about the progress of the work to standard error."""
        print(text, file=sys.stderr, flush=True)

    def result(self, content: Mapping[str, object]) -> None:
        """Print the JSON object of --json; a command calls this once, at its end."""
        if self.as_json:
            print(json.dumps(content, allow_nan=False), flush=True)
