"""Types of command line arguments: each refuses what cannot work, in words."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def add_local_root(group: "argparse._ArgumentGroup") -> None:
    """The option that widens where a manifest may name local files."""
    group.add_argument(
        "--local-root",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder that a manifest may name files in, beside its own (again for more)",
    )


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from low to high."""
    words = f"a whole number, at least {low}" if high is None else f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"has to be {words}")
        return int(text)

    return parse


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, 0, 1)


def number(text: str) -> float:
    """A number that is not negative."""
    return _number(text, 0, math.inf)


def gpus(text: str) -> float:
    """GPUs of a worker: none, a share of one, or several."""
    return _number(text, 0, 64)


def folder(text: str) -> str:
    """A folder to write into, there already or not."""
    if any(path.exists() and not path.is_dir() for path in (Path(text), *Path(text).parents)):
        raise argparse.ArgumentTypeError(f"{text} cannot be a folder: there is a file of that name")
    return text


def _number(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or math.isinf(value):
        raise argparse.ArgumentTypeError(f"has to be a number between {low} and {high}")
    return value
