"""Check the records of a ledger: recipe.json, plans with their files, and run records."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from camworker.errors import CorruptedError, UsageError, first_line
from camworker.ledger.inventory import sha256_of
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe, recipe_id
from camworker.ledger.records import Plan, PlanFile, RunRecord
from camworker.storage.parquet import READ_ERRORS

RERUN: Final = "run localize again with the same INPUT and options"

_RESTORE: Final = "restore it from a copy; without one, localize to another OUT"
_RECIPE: Final = f"delete it and {RERUN}: it is written again as soon as there is an image to localize"
_RUN: Final = f"delete it and {RERUN}: it is written again from the parts that are present"
# TypeError: JSON of another shape than was written.
_UNREADABLE: Final = (*READ_ERRORS, TypeError, CorruptedError, UsageError)

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Problem:
    """An object that is not as it was committed.

    Attributes:
        key: Key of the object.
        problem: What is wrong with it; the message reads "`key` `problem`".
        advice: What to do about it.
    """

    key: str
    problem: str
    advice: str


def check_recipe(ledger: Ledger) -> list[Problem]:
    """Check that recipe.json describes a recipe and that its hash is the id of the recipe."""

    def read() -> Recipe | str:
        # The content is hashed as it is: an older recipe may lack a setting that has a default now.
        content = json.loads(ledger.store.read(ledger.layout.recipe_key))
        if recipe_id(content) != ledger.recipe:
            return "does not describe this recipe: its hash differs from the id"
        return Recipe.from_json(content)

    outcome = _outcome(ledger.layout.recipe_key, read, _RECIPE)
    return [outcome] if isinstance(outcome, Problem) else []


def recorded_generations(ledger: Ledger) -> list[int]:
    """Return the generations that have a run record, in ascending order."""
    keys = (entry.key for entry in ledger.store.list(ledger.layout.folder))
    return sorted(number for key in keys if (number := ledger.layout.parse_run_key(key)) is not None)


def check_plan(ledger: Ledger, generation: int) -> Plan | Problem:
    """Read the plan of a generation, and check that its parts fit together."""
    key = ledger.layout.plan_key(generation)

    def read() -> Plan | str:
        record = json.loads(ledger.store.read(key))
        plan = Plan.from_json(record)
        written = {name: record[name] for name in ("recipe", "generation", "items", "shards", "hash")}
        first_shards = [file.first_shard for file in plan.files]
        shards = [len(file.rows) for file in plan.files]
        if first_shards != [sum(shards[:index]) for index in range(len(shards))] or written != {
            "recipe": ledger.recipe,
            "generation": generation,
            "items": plan.items,
            "shards": plan.shards,
            "hash": plan.hash,
        }:
            return "is not the plan that was written: its hash or its counts do not fit its files"
        return plan

    return _outcome(key, read, _RESTORE)


def check_plan_file(ledger: Ledger, file: PlanFile) -> Problem | None:
    """Check that a file of planned items has the SHA-256 that its plan says."""

    def read() -> str | None:
        with ledger.store.open(file.key) as opened:
            return (
                None if sha256_of(opened) == file.sha256 else "does not have the SHA-256 that its plan says"
            )

    return _outcome(file.key, read, _RESTORE)


def check_run(ledger: Ledger, generation: int, plan: Plan | None) -> RunRecord | Problem:
    """Read the run record of a generation, and check that it names every planned part once.

    Args:
        ledger: The ledger of the recipe.
        generation: Number of the generation.
        plan: The plan of the generation; None if it is damaged itself. The record then has to agree with
            itself.
    """

    def read() -> RunRecord | str:
        record = RunRecord.from_json(json.loads(ledger.store.read(ledger.layout.run_key(generation))))
        return _mismatch(ledger, generation, plan, record) or record

    return _outcome(ledger.layout.run_key(generation), read, _RUN)


def _mismatch(ledger: Ledger, generation: int, plan: Plan | None, record: RunRecord) -> str:
    """Return how a run record contradicts its plan or itself; an empty text if it does not."""
    rows = plan.shard_rows if plan else [part.rows for part in record.parts]
    plan_hash = plan.hash if plan else record.plan_hash
    images = Counter[str]()
    for part in record.parts:
        images.update(part.images)
    if (record.recipe, record.generation, record.plan_hash) != (ledger.recipe, generation, plan_hash):
        return "belongs to another plan"
    if [(part.shard, part.key, part.rows) for part in record.parts] != [
        (shard, ledger.layout.part_key(generation, shard), count) for shard, count in enumerate(rows)
    ]:
        return "does not name every planned part once, with its rows"
    if images != record.images or any(sum(part.images.values()) != part.rows for part in record.parts):
        return "counts other images than its parts hold"
    return ""


def _outcome(key: str, read: Callable[[], _Record | str], advice: str) -> _Record | Problem:
    """Return what `read` returns; a text, or an error of reading, becomes a `Problem`."""
    try:
        outcome = read()
    except FileNotFoundError:
        return Problem(key, "is missing", advice)
    except _UNREADABLE as error:
        return Problem(key, f"cannot be read ({first_line(error)})", advice)
    return Problem(key, outcome, advice) if isinstance(outcome, str) else outcome
