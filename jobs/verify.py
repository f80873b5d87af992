"""Whether every committed byte is as it was: what is not is named, with what to do about it."""

import argparse
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from camworker.errors import CorruptedError, UsageError
from camworker.ledger.ledger import Ledger
from camworker.storage.uris import open_store
from jobs.console import DONE, Console
from jobs.options import add_out_argument
from jobs.progress import ImageProgress

if TYPE_CHECKING:
    from camworker.ledger.verify_records import Problem

HELP = "whether every committed byte is as it was"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_out_argument(parser)
    parser.add_argument("--recipe", help="only this one (default: all that OUT holds)")


def run(args: argparse.Namespace, console: Console) -> int:
    store = open_store(args.output)

    from camworker.ledger.verify import unexpected_recipes

    held = Ledger.recipes(store, damaged=True)
    if not held:
        raise UsageError(f"{args.output} holds no predictions: localize writes them with --output")
    if args.recipe and args.recipe not in held:
        raise UsageError(f"{args.output} holds no recipe {args.recipe}: it holds {', '.join(held)}")
    found = [_verify(Ledger(store, name), console) for name in ([args.recipe] if args.recipe else held)]
    strays = [] if args.recipe else unexpected_recipes(store, held)
    problems = [*chain.from_iterable(problems for _, problems in found), *strays]
    _tell_problems(problems, console)
    recipes = [recipe for recipe, _ in found]
    console.result(
        {
            "recipes": recipes,
            "parts": sum(recipe["parts"] for recipe in recipes),
            "bytes": sum(recipe["bytes"] for recipe in recipes),
            "problems": [asdict(problem) for problem in problems],
        }
    )
    return CorruptedError.exit_code if problems else DONE


def _verify(ledger: Ledger, console: Console) -> tuple[dict[str, Any], list["Problem"]]:
    """What was looked at in a recipe, and what is wrong there; the first is told."""
    from camworker.ledger.verify import check_parts, survey

    found = survey(ledger)
    problems = list(found.problems)
    rows = {True: 0, False: 0}
    with ImageProgress(sum(part.rows for part in found.parts)) as progress:
        for part, problem in check_parts(ledger, found.parts):
            rows[problem is None] += part.rows
            problems += [problem] if problem else []
            progress.update(sum(rows.values()), rows[False])
    size = sum(part.bytes for part in found.parts)
    console.out(
        f"recipe {ledger.recipe}: {sum(rows.values())} images in {len(found.parts)} parts, {size} bytes"
    )
    for generation in found.generations:
        if not generation.complete:
            console.out(
                f"  generation {generation.generation} is unfinished ({generation.parts} of "
                f"{generation.shards} parts): run localize again to complete it"
            )
    if found.replaced:
        console.out(f"  parts that are gone, and whose images later generations hold: {len(found.replaced)}")
    about = {
        "recipe": ledger.recipe,
        "generations": [asdict(generation) for generation in found.generations],
        "parts": len(found.parts),
        "bytes": size,
        "replaced": list(found.replaced),
    }
    return about, problems


def _tell_problems(problems: list["Problem"], console: Console) -> None:
    for problem in problems:
        console.out(f"{problem.key} {problem.problem}")
        console.out(f"  {problem.advice}")
    console.out(f"problems: {len(problems)}" if problems else "every committed byte is as it was")
