"""What is planned, done and failed in an output, once or until it is complete."""

import argparse
from collections import Counter
from typing import Any

from camworker.errors import UsageError
from camworker.ledger.ledger import Ledger, recipes
from camworker.storage.uris import open_store
from jobs.console import DONE, Console
from jobs.follow import follow

HELP = "what is planned, done and failed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT", help="what localize was given as --output")
    parser.add_argument(
        "--follow", action="store_true", help="show how far it is, until what is unfinished is complete"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    store = open_store(args.output)
    if args.follow:
        follow(store, console)
    found = [_recipe_status(Ledger(store, recipe)) for recipe in recipes(store)]
    if not found:
        raise UsageError(f"{args.output} holds no predictions: localize writes them with --output")
    for recipe in found:
        console.say(
            f"recipe {recipe['recipe']}: {recipe['network']}, {recipe['box_rule']}, "
            f"precision {recipe['precision']}"
        )
        for generation in recipe["generations"]:
            failed = sum(generation["failed"].values())
            state = "complete" if generation["complete"] else "unfinished: run localize again"
            console.say(
                f"  generation {generation['generation']}: {generation['done']} of {generation['planned']} "
                f"images, {failed} failed, {generation['parts']} of {generation['shards']} parts; {state}"
            )
            for status, count in sorted(generation["failed"].items()):
                console.say(f"    {count} {status}")
            if generation["removed"]:
                console.say(f"    {generation['removed']} removed: no longer listed, and no failure")
    console.result({"recipes": found, "complete": all(recipe["complete"] for recipe in found)})
    return DONE


def _recipe_status(ledger: Ledger) -> dict[str, Any]:
    asked = ledger.read_recipe()
    parts = ledger.parts()
    generations = [_generation_status(ledger, number, parts) for number in ledger.generations()]
    return {
        "recipe": ledger.recipe,
        **{name: asked[name] for name in ("network", "box_rule", "precision")},
        "generations": generations,
        "complete": all(generation["complete"] for generation in generations),
    }


def _generation_status(ledger: Ledger, number: int, parts: dict[tuple[int, int], str]) -> dict[str, Any]:
    from camworker.dataset import count_statuses

    plan, run = ledger.read_plan(number), ledger.read_run(number)
    keys = [key for (generation, _), key in parts.items() if generation == number]
    # The run record has counted already; an unfinished generation is counted where it lies.
    images = Counter(run["images"]) if run else count_statuses(ledger, keys)
    return {
        "generation": number,
        "planned": plan.items,
        "done": images.total(),
        "failed": {
            status: count for status, count in sorted(images.items()) if status not in ("ok", "removed")
        },
        "removed": images["removed"],
        "shards": plan.shards,
        "parts": len(keys),
        "complete": run is not None,
    }
