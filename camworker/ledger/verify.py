"""Whether what a recipe committed is as it was: its ledger, and every byte of every part."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO, Final

import pyarrow as pa

from camworker.errors import CommitError, first_line
from camworker.ledger.inventory import (
    PartInventory,
    list_parts,
    parts_in,
    planned_again,
    sha256_of,
)
from camworker.ledger.ledger import Ledger, Part, Plan
from camworker.ledger.plan import read_shard
from camworker.ledger.verify_records import (
    AGAIN,
    Problem,
    check_plan,
    check_plan_file,
    check_recipe,
    check_run,
    recorded_generations,
    shard_rows,
)
from camworker.storage.parquet import READ_ERRORS, open_parquet
from camworker.storage.store import Store

_THREADS: Final = min(8, 2 * (os.cpu_count() or 1))
_ROWS: Final = 1024  # decoded at a time, of a part that no record vouches for

_LOST: Final = f"{AGAIN}: its images are planned again in a new generation"
_ALTERED: Final = f"delete it and {AGAIN}: its images are planned again in a new generation"
_UNRECORDED: Final = f"delete it and {AGAIN}: its generation is unfinished, and the part is made again"
_STRAY: Final = "move it out of predictions/: who reads that folder takes its rows for localize's"
_RECIPE: Final = re.compile(r"ledger/recipe=(r[0-9a-f]{12})/")


@dataclass(frozen=True, slots=True)
class Generation:
    """How far a generation is: complete when it has a run record. parts: those that are there."""

    generation: int
    complete: bool
    parts: int
    shards: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A part that is there, and what it is compared with: its run record, its plan, or both.

    plan: None where it or a file of it is damaged.
    """

    key: str
    generation: int
    shard: int
    rows: int
    bytes: int
    record: Part | None
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Survey:
    """What a recipe has committed, by its ledger and its listing, and what is wrong with these.

    replaced: keys of parts that are gone and whose images later generations hold, which is as it should be.
    """

    generations: tuple[Generation, ...]
    parts: tuple[Committed, ...]
    replaced: tuple[str, ...]
    problems: tuple[Problem, ...]


def held_recipes(store: Store) -> list[str]:
    """The recipes that an output's ledger knows, be recipe.json there or not."""
    return sorted({match[1] for entry in store.list("ledger") if (match := _RECIPE.match(entry.key))})


def survey(ledger: Ledger) -> Survey:
    """Check the ledger and the listing of a recipe; no part is opened."""
    # Which records there are, then the parts, then the plans: what a run commits meanwhile is no damage.
    run_numbers = recorded_generations(ledger)
    listed = list_parts(ledger)
    plans = {g: check_plan(ledger, g) for g in sorted({*ledger.generations(), *run_numbers})}
    good_plans = {g: plan for g, plan in plans.items() if isinstance(plan, Plan)}
    runs = {g: check_run(ledger, g, good_plans.get(g)) for g in run_numbers}
    records = {g: parts_in(run) for g, run in runs.items() if not isinstance(run, Problem)}
    stock = PartInventory(listed, {(g, part.shard): part for g, found in records.items() for part in found})
    replaced = {place: part.key for place, part in stock.absent.items() if planned_again(ledger, *place)}
    problems = [
        *check_recipe(ledger),
        *(found for found in (*plans.values(), *runs.values()) if isinstance(found, Problem)),
        *(
            Problem(part.key, "is gone, and its run record names it", _LOST)
            for place, part in stock.absent.items()
            if place not in replaced
        ),
    ]
    parts: list[Committed] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for g in plans:
            plan = good_plans.get(g)
            damaged = [
                *filter(None, threads.map(partial(check_plan_file, ledger), plan.files if plan else ()))
            ]
            problems += damaged
            parts += _there(ledger, listed, g, records.get(g), plan, with_plan=not damaged)
    unknown = plans.keys() - good_plans.keys() - records.keys()
    problems += _strays(ledger, listed, parts, unknown)
    generations = tuple(_generations(good_plans, records, parts))
    return Survey(generations, tuple(parts), tuple(replaced.values()), tuple(problems))


def check_parts(ledger: Ledger, parts: Iterable[Committed]) -> Iterator[tuple[Committed, Problem | None]]:
    """Each part with what is wrong with it, in order. Parts are streamed, several at a time.

    A part with a run record is compared with it byte for byte; of a part without one every page checksum
    is. Either has to hold the planned images.
    """
    parts = list(parts)
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from zip(parts, threads.map(partial(_check_part, ledger), parts), strict=True)


def orphans(store: Store, recipes: Iterable[str]) -> list[Problem]:
    """Parquet files in predictions/ that belong to none of these recipes."""
    known = tuple(f"{Ledger(store, recipe).parts_folder}/" for recipe in recipes)
    return [
        Problem(entry.key, "belongs to no recipe of the ledger", _STRAY)
        for entry in store.list("predictions")
        if entry.key.endswith(".parquet") and not entry.key.startswith(known)
    ]


def _there(
    ledger: Ledger,
    listed: Mapping[str, int],
    generation: int,
    record: list[Part] | None,
    plan: Plan | None,
    *,
    with_plan: bool,
) -> Iterator[Committed]:
    """The parts of a generation that are there, by its run record or else by its plan."""
    if record is not None:
        known: list[tuple[int, int, Part | None]] = [(part.shard, part.rows, part) for part in record]
    else:
        known = [(shard, rows, None) for shard, rows in enumerate(shard_rows(plan) if plan else ())]
    for shard, rows, part in known:
        if (key := ledger.part_key(generation, shard)) in listed:
            yield Committed(key, generation, shard, rows, listed[key], part, plan if with_plan else None)


def _check_part(ledger: Ledger, part: Committed) -> Problem | None:
    """A part's size and SHA-256, or its page checksums; its plan and its images."""
    advice = _ALTERED if part.record else _UNRECORDED
    if part.record and part.bytes != part.record.bytes:
        wrong = f"has {part.bytes} bytes where its run record says {part.record.bytes}"
        return Problem(part.key, wrong, advice)
    try:
        with ledger.store.open(part.key) as file:
            if part.record:
                if sha256_of(file) != part.record.sha256:
                    return Problem(part.key, "does not have the SHA-256 that its run record says", advice)
                file.seek(0)
            wrong = _misfit(ledger, part, file)
    except (*READ_ERRORS, CommitError) as error:
        return Problem(part.key, f"cannot be read ({first_line(error)})", advice)
    return Problem(part.key, wrong, advice) if wrong else None


def _misfit(ledger: Ledger, part: Committed, file: IO[bytes]) -> str:
    """What in a part is not as planned; empty where nothing is. Raises READ_ERRORS for a damaged page."""
    parquet = open_parquet(file)
    # What the SHA-256 vouches for need not be decoded.
    columns = ["image_id"] if part.record else None
    batches = parquet.iter_batches(_ROWS, columns=columns, use_threads=False)
    ids = pa.chunked_array([batch.column("image_id") for batch in batches], pa.string())
    if len(ids) != part.rows:
        return f"has {len(ids)} rows where {part.rows} were planned"
    if part.plan is None:
        return ""
    plan = part.plan
    metadata = parquet.schema_arrow.metadata or {}
    planned = {
        "recipe": plan.recipe,
        "generation": plan.generation,
        "shard": part.shard,
        "plan_hash": plan.hash,
    }
    for name, value in planned.items():
        if metadata.get(name.encode(), b"").decode() != str(value):
            return f"says that it is of another {name.replace('_', ' ')}"
    if ids.combine_chunks() != read_shard(ledger, plan, part.shard)["image_id"].combine_chunks():
        return "holds other images than were planned"
    return ""


def _strays(
    ledger: Ledger, listed: Mapping[str, int], parts: Iterable[Committed], unknown: Iterable[int]
) -> Iterator[Problem]:
    """Parquet files beside the parts. unknown: generations of which neither record nor plan can be read."""
    explained = {part.key for part in parts}
    undecided = tuple(ledger.part_key(g, 0).removesuffix("000000.parquet") for g in unknown)
    for key in sorted(listed.keys() - explained):
        if key.endswith(".parquet") and not key.startswith(undecided):
            yield Problem(key, "is named by no run record and no unfinished plan", _STRAY)


def _generations(
    plans: Mapping[int, Plan], records: Mapping[int, list[Part]], parts: Iterable[Committed]
) -> Iterator[Generation]:
    there = Counter(part.generation for part in parts)
    for g in sorted({*plans, *records}):
        shards = plans[g].shards if g in plans else len(records[g])
        yield Generation(g, g in records, there[g], shards)
