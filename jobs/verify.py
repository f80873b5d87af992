"""Check that every committed byte is unchanged; name the files that are not and what to do about them."""

import argparse
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from camworker.errors import CorruptedError, UsageError
from camworker.storage.uris import open_store
from jobs.console import DONE, Console
from jobs.options import add_out_argument
from jobs.progress import ImageProgress

if TYPE_CHECKING:
    from camworker.ledger.ledger import Ledger
    from camworker.ledger.verify import GenerationState
    from camworker.ledger.verify_records import Problem

HELP = "check that every committed byte is unchanged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `camworker verify`."""
    add_out_argument(parser)
    parser.add_argument("--recipe", metavar="ID", help="check only this recipe (default: all recipes of OUT)")


@dataclass(frozen=True, slots=True)
class _RecipeReport:
    recipe: str
    generations: list["GenerationState"]
    parts: int
    bytes: int
    replaced: list[str]


def run(args: argparse.Namespace, console: Console) -> int:
    """Run `camworker verify`; return its exit code."""
    store = open_store(args.output)

    from camworker.ledger.ledger import Ledger
    from camworker.ledger.verify import unexpected_recipes

    held = Ledger.recipes(store, damaged=True)
    if not held:
        raise UsageError(f"{args.output} holds no predictions: localize writes them with --output")
    if args.recipe and args.recipe not in held:
        raise UsageError(f"{args.output} holds no recipe {args.recipe}: it holds {', '.join(held)}")
    reports: list[_RecipeReport] = []
    problems: list[Problem] = []
    for name in [args.recipe] if args.recipe else held:
        report, recipe_problems = _verify(Ledger(store, name), console)
        reports.append(report)
        problems += recipe_problems
    problems += [] if args.recipe else unexpected_recipes(store, held)
    _print_problems(problems, console)
    console.result(
        {
            "recipes": [asdict(report) for report in reports],
            "parts": sum(report.parts for report in reports),
            "bytes": sum(report.bytes for report in reports),
            "problems": [asdict(problem) for problem in problems],
        }
    )
    return CorruptedError.exit_code if problems else DONE


def _verify(ledger: "Ledger", console: Console) -> "tuple[_RecipeReport, list[Problem]]":
    """Check one recipe and print what was checked; return the report and the problems."""
    from camworker.ledger.verify import check_parts, survey

    state = survey(ledger)
    problems = list(state.problems)
    rows = damaged_rows = 0
    with ImageProgress(sum(part.rows for part in state.parts)) as progress:
        for part, problem in check_parts(ledger, state.parts):
            rows += part.rows
            if problem:
                damaged_rows += part.rows
                problems.append(problem)
            progress.update(rows, damaged_rows)
    size = sum(part.bytes for part in state.parts)
    console.out(f"recipe {ledger.recipe}: {rows} images in {len(state.parts)} parts, {size} bytes")
    for generation in state.generations:
        if not generation.complete:
            console.out(
                f"  generation {generation.generation} is unfinished ({generation.parts} of "
                f"{generation.shards} parts): run localize again to complete it"
            )
    if state.replaced:
        console.out(f"  missing parts whose images later generations hold: {len(state.replaced)}")
    report = _RecipeReport(
        ledger.recipe, list(state.generations), len(state.parts), size, list(state.replaced)
    )
    return report, problems


def _print_problems(problems: list["Problem"], console: Console) -> None:
    for problem in problems:
        console.out(f"{problem.key} {problem.problem}")
        console.out(f"  {problem.advice}")
    console.out(f"problems: {len(problems)}" if problems else "every committed byte is unchanged")
