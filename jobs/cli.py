"""The command line of camworker: find the command, run it, and turn errors into exit codes."""

import argparse
import gc
import importlib
import sys
from typing import Final, NoReturn

from camworker import __version__
from camworker.errors import CamworkerError, UsageError
from jobs.console import INCOMPLETE, Console

# Each name is, with "_" for "-", a module or a package of jobs/ that defines HELP, add_arguments(parser) and
# run(args, console), which returns the exit code.
COMMANDS: Final = (
    *("demo", "localize", "summarize", "preview", "export", "status", "verify", "compact"),
    *("finetune", "fit-foreground", "units", "networks", "package", "submit"),
)

# Importing torch and Ray creates several hundred thousand objects that live as long as the process. With
# Python's default threshold the collector scans them over and over, which costs start-up half a second.
GC_THRESHOLD: Final = 50_000


class CommandParser(argparse.ArgumentParser):
    """The parser of camworker or of one of its commands.

    Attributes:
        commands: The parser of every command; empty for the parser of a command.
    """

    commands: dict[str, "CommandParser"]

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with the code of a UsageError."""
        self.exit(UsageError.exit_code, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> CommandParser:
    """Return the parser of the whole command line."""
    parser = CommandParser(
        prog="camworker",
        description="Label images and box the objects in them with class activation maps of a classification "
        "network, on one machine or on a Ray cluster.",
        epilog="Start with: camworker demo",
    )
    parser.add_argument("--version", action="version", version=f"camworker {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"jobs.{name.replace('-', '_')}")
        command = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument(
            "--json",
            action="store_true",
            help="end standard output with one JSON object; text goes to stderr",
        )
        command.add_argument("--verbose", action="store_true", help="show the logs of the workers too")
        command.set_defaults(run=module.run)
    parser.commands = dict(subparsers.choices)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after "camworker"; default those of this process.

    Returns:
        The exit code: that of the command, or that of the error which ended it.
    """
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return int(args.run(args, Console(as_json=args.json, verbose=args.verbose)))
    except CamworkerError as error:
        option = _option(parser.commands[args.command], error)
        print(f"camworker {args.command}: {error}{option}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"camworker {args.command}: interrupted", file=sys.stderr)
        return INCOMPLETE


def _option(parser: argparse.ArgumentParser, error: CamworkerError) -> str:
    """Return the option that an error is about, such as " (--id-column)", or nothing if there is none."""
    if isinstance(error, UsageError) and error.parameter:
        for action in parser._actions:
            if action.dest == error.parameter:
                name = action.option_strings[-1] if action.option_strings else action.metavar
                return f" ({name})"
    return ""


if __name__ == "__main__":
    sys.exit(main())
