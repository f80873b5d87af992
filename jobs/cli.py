"""The command line: picks the command, maps errors to exit codes."""

import argparse
import importlib
import sys
from typing import Final, NoReturn

from camworker import __version__
from camworker.errors import CorruptedError, UsageError
from jobs.console import INCOMPLETE, USAGE, VERIFICATION_FAILED, Console

# One module each, with HELP, add_arguments(parser) and run(args, console) -> exit code.
COMMANDS: Final = (
    *("demo", "localize", "summarize", "preview", "export", "status", "verify", "compact"),
    *("finetune", "units", "networks", "package", "submit"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="camworker",
        description="Boxes for images that nobody ever boxed: class activation maps of a network that "
        "ends in global average pooling, at any scale.",
        epilog="Start with: camworker demo",
    )
    parser.add_argument("--version", action="version", version=f"camworker {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"jobs.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument(
            "--json", action="store_true", help="end stdout with one JSON object; text goes to stderr"
        )
        command.add_argument("--verbose", action="store_true", help="show the log of the workers too")
        command.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(args, Console(as_json=args.json, verbose=args.verbose))
    except UsageError as error:
        print(f"camworker {args.command}: {error}", file=sys.stderr)
        return USAGE
    except CorruptedError as error:
        print(f"camworker {args.command}: {error}", file=sys.stderr)
        return VERIFICATION_FAILED
    except KeyboardInterrupt:
        print(f"camworker {args.command}: interrupted", file=sys.stderr)
        return INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
