"""Whether the ledger of a recipe is as it was written: recipe, plans with their files, run records."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from camworker.errors import CorruptedError, UsageError, first_line
from camworker.ledger.inventory import parts_in, sha256_of
from camworker.ledger.ledger import Ledger, Plan, PlanFile
from camworker.ledger.recipe import Recipe, recipe_id
from camworker.storage.parquet import READ_ERRORS

AGAIN: Final = "run localize again with the same INPUT and options"

_RESTORE: Final = "restore it from a copy; without one, localize to another OUT"
_RECIPE: Final = f"delete it; {AGAIN}: it is written anew as soon as there is an image to localize"
_RUN: Final = f"delete it and {AGAIN}: it is written anew from the parts that are there"
_RUN_NAME: Final = re.compile(r"run-(\d{4})\.json")
# TypeError: JSON of another shape than was written.
_UNREADABLE: Final = (*READ_ERRORS, TypeError, CorruptedError, UsageError)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is not as it was committed, by its key, and what to do about it."""

    key: str
    problem: str
    advice: str


def check_recipe(ledger: Ledger) -> list[Problem]:
    """Check that recipe.json describes a recipe and that its hash is the recipe's id."""
    key = f"{_home(ledger)}/recipe.json"

    def read() -> Recipe | str:
        # The content is hashed as it is: an older recipe may lack a setting that has a default now.
        content = json.loads(ledger.store.read(key))
        if recipe_id(content) != ledger.recipe:
            return "is not the recipe of that name: its hash is another"
        return Recipe.from_json(content)

    outcome = _outcome(key, read, _RECIPE)
    return [outcome] if isinstance(outcome, Problem) else []


def recorded_generations(ledger: Ledger) -> list[int]:
    """Generations that have a run record, ascending."""
    names = (entry.key.removeprefix(f"{_home(ledger)}/") for entry in ledger.store.list(_home(ledger)))
    return sorted(int(match[1]) for name in names if (match := _RUN_NAME.fullmatch(name)))


def check_plan(ledger: Ledger, generation: int) -> Plan | Problem:
    """A generation's plan, if it is what was written: its parts have to fit together."""
    key = f"{_home(ledger)}/plan-{generation:04d}.json"

    def read() -> Plan | str:
        plan, record = ledger.read_plan(generation), json.loads(ledger.store.read(key))
        written = {name: record[name] for name in ("recipe", "generation", "items", "shards", "hash")}
        shards = [file.first_shard for file in plan.files]
        if written != {
            "recipe": ledger.recipe,
            "generation": generation,
            "items": plan.items,
            "shards": plan.shards,
            "hash": plan.hash,
        } or shards != [sum(len(file.rows) for file in plan.files[:place]) for place in range(len(shards))]:
            return "is not the plan that was written: its hash or its counts do not fit its files"
        return plan

    return _outcome(key, read, _RESTORE)


def check_plan_file(ledger: Ledger, file: PlanFile) -> Problem | None:
    """A file of planned items has to have the SHA-256 that the plan says."""

    def read() -> str | None:
        with ledger.store.open(file.key) as opened:
            return (
                None if sha256_of(opened) == file.sha256 else "does not have the SHA-256 that its plan says"
            )

    return _outcome(file.key, read, _RESTORE)


def check_run(ledger: Ledger, generation: int, plan: Plan | None) -> dict[str, Any] | Problem:
    """A generation's run record, if it fits the plan: every shard's part once, with the planned rows.

    plan: None where it is damaged itself; the record then has to agree with itself.
    """
    key = f"{_home(ledger)}/run-{generation:04d}.json"

    def read() -> dict[str, Any] | str:
        record = json.loads(ledger.store.read(key))
        return _misfit(ledger, generation, plan, record) or record

    return _outcome(key, read, _RUN)


def shard_rows(plan: Plan) -> list[int]:
    """Planned rows, shard by shard."""
    return [rows for file in plan.files for rows in file.rows]


def _misfit(ledger: Ledger, generation: int, plan: Plan | None, record: dict[str, Any]) -> str:
    """What in a run record contradicts its plan or itself; empty where nothing does."""
    parts = parts_in(record)
    rows = shard_rows(plan) if plan else [part.rows for part in parts]
    plan_hash = plan.hash if plan else record["plan_hash"]
    images = Counter[str]()
    for part in parts:
        images.update(part.images)
    if (record["recipe"], record["generation"], record["plan_hash"]) != (
        ledger.recipe,
        generation,
        plan_hash,
    ):
        return "is of another plan"
    if [(part.shard, part.key, part.rows) for part in parts] != [
        (shard, ledger.part_key(generation, shard), count) for shard, count in enumerate(rows)
    ]:
        return "does not name every planned part once, with its rows"
    if images != record["images"] or any(sum(part.images.values()) != part.rows for part in parts):
        return "counts other images than its parts hold"
    return ""


def _outcome(key: str, read: Callable[[], T | str], advice: str) -> T | Problem:
    """What read gives; a text, or an error of reading, becomes a Problem."""
    try:
        found = read()
    except FileNotFoundError:
        return Problem(key, "is gone", advice)
    except _UNREADABLE as error:
        return Problem(key, f"cannot be read ({first_line(error)})", advice)
    return Problem(key, found, advice) if isinstance(found, str) else found


def _home(ledger: Ledger) -> str:
    return f"ledger/recipe={ledger.recipe}"
