"""Check that what a recipe committed is as it was written: its ledger, and every byte of every part."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Final

import pyarrow as pa

from camworker.errors import CommitError, first_line
from camworker.ledger.inventory import PartInventory, list_parts, planned_again, sha256_of
from camworker.ledger.layout import PREDICTIONS_FOLDER, Layout, part_prefix
from camworker.ledger.ledger import Ledger
from camworker.ledger.parts import planned_metadata
from camworker.ledger.plan import read_shard
from camworker.ledger.records import Part, Plan
from camworker.ledger.verify_records import (
    RERUN,
    Problem,
    check_plan,
    check_plan_file,
    check_recipe,
    check_run,
    recorded_generations,
)
from camworker.storage.parquet import READ_ERRORS, open_parquet
from camworker.storage.store import Store

_THREADS: Final = min(8, 2 * (os.cpu_count() or 1))
_BATCH_ROWS: Final = 1024  # decoded at a time, of a part without a run record

_LOST: Final = f"{RERUN}: its images are planned again in a new generation"
_ALTERED: Final = f"delete it and {RERUN}: its images are planned again in a new generation"
_UNRECORDED: Final = f"delete it and {RERUN}: its generation is unfinished, so the part is computed again"
_UNEXPECTED: Final = (
    "move it out of predictions/: readers of that folder would take its rows for results of localize"
)


@dataclass(frozen=True, slots=True)
class GenerationState:
    """How far a generation is.

    Attributes:
        generation: Number of the generation.
        complete: Whether it has a run record.
        parts: Number of parts that are present.
        shards: Number of planned shards.
    """

    generation: int
    complete: bool
    parts: int
    shards: int


@dataclass(frozen=True, slots=True)
class PresentPart:
    """A part that is present, and what it is compared with: its run record, its plan, or both.

    Attributes:
        key: Key of the part.
        generation: Number of its generation.
        shard: Number of its shard.
        rows: Number of rows that it should have.
        bytes: Its size in bytes.
        record: Its entry in the run record; None while the generation is unfinished.
        plan: The plan of its generation; None if the plan or a file of it is damaged.
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
    """What a recipe has committed according to its ledger and its listing.

    Attributes:
        generations: The planned generations.
        parts: The parts that are present.
        replaced: Keys of parts that are missing but not needed: later generations hold their images.
        problems: What is wrong with the ledger and the listing.
    """

    generations: tuple[GenerationState, ...]
    parts: tuple[PresentPart, ...]
    replaced: tuple[str, ...]
    problems: tuple[Problem, ...]


def survey(ledger: Ledger) -> Survey:
    """Check the ledger of a recipe and the listing of its parts, without opening a part."""
    # First the run records, then the parts, then the plans: this order keeps whatever a run commits in the
    # meantime from looking like damage.
    run_numbers = recorded_generations(ledger)
    listed = list_parts(ledger)
    plans = {number: check_plan(ledger, number) for number in sorted({*ledger.generations(), *run_numbers})}
    good_plans = {number: plan for number, plan in plans.items() if isinstance(plan, Plan)}
    runs = {number: check_run(ledger, number, good_plans.get(number)) for number in run_numbers}
    recorded = {number: run.parts for number, run in runs.items() if not isinstance(run, Problem)}
    absent = PartInventory(listed, recorded).absent
    replaced = {shard_id: part.key for shard_id, part in absent.items() if planned_again(ledger, *shard_id)}
    problems = [
        *check_recipe(ledger),
        *(record for record in (*plans.values(), *runs.values()) if isinstance(record, Problem)),
        *(
            Problem(part.key, "is missing, although its run record names it", _LOST)
            for shard_id, part in absent.items()
            if shard_id not in replaced
        ),
    ]
    parts: list[PresentPart] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for number in plans:
            plan = good_plans.get(number)
            checked = threads.map(partial(check_plan_file, ledger), plan.files if plan else ())
            damaged = [problem for problem in checked if problem]
            problems += damaged
            present = _present_parts(ledger.layout, listed, number, recorded.get(number), plan)
            parts += (replace(part, plan=None) if damaged else part for part in present)
    unknown = plans.keys() - good_plans.keys() - recorded.keys()
    problems += _unexpected_files(ledger.layout, listed, parts, unknown)
    states = tuple(_generation_states(good_plans, recorded, parts))
    return Survey(states, tuple(parts), tuple(replaced.values()), tuple(problems))


def check_parts(ledger: Ledger, parts: Iterable[PresentPart]) -> Iterator[tuple[PresentPart, Problem | None]]:
    """Yield each part with what is wrong with it, in order. Parts are streamed, several at a time.

    A part that a run record names is compared with the record byte by byte; of any other part every page
    checksum is checked. Both have to hold the planned images.
    """
    parts = list(parts)
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from zip(parts, threads.map(partial(_check_part, ledger), parts), strict=True)


def unexpected_recipes(store: Store, recipes: Iterable[str]) -> list[Problem]:
    """Return the Parquet files in predictions/ that belong to none of these recipes."""
    known = tuple(f"{Layout(recipe).parts_folder}/" for recipe in recipes)
    return [
        Problem(entry.key, "belongs to no recipe of the ledger", _UNEXPECTED)
        for entry in store.list(PREDICTIONS_FOLDER)
        if entry.key.endswith(".parquet") and not entry.key.startswith(known)
    ]


def _present_parts(
    layout: Layout,
    listed: Mapping[str, int],
    generation: int,
    recorded: Sequence[Part] | None,
    plan: Plan | None,
) -> Iterator[PresentPart]:
    """Yield the parts of a generation that are present, by its run record or else by its plan."""
    if recorded is not None:
        expected: list[tuple[int, int, Part | None]] = [(part.shard, part.rows, part) for part in recorded]
    else:
        expected = [(shard, rows, None) for shard, rows in enumerate(plan.shard_rows if plan else ())]
    for shard, rows, part in expected:
        if (key := layout.part_key(generation, shard)) in listed:
            yield PresentPart(key, generation, shard, rows, listed[key], part, plan)


def _check_part(ledger: Ledger, part: PresentPart) -> Problem | None:
    """Check the size and SHA-256 of a part, or its page checksums; then its plan and its images."""
    advice = _ALTERED if part.record else _UNRECORDED
    if part.record and part.bytes != part.record.bytes:
        problem = f"has {part.bytes} bytes, but its run record says {part.record.bytes}"
        return Problem(part.key, problem, advice)
    try:
        with ledger.store.open(part.key) as file:
            if part.record:
                if sha256_of(file) != part.record.sha256:
                    return Problem(part.key, "does not have the SHA-256 that its run record says", advice)
                file.seek(0)
            problem = _mismatch(ledger, part, file)
    except (*READ_ERRORS, CommitError) as error:
        return Problem(part.key, f"cannot be read ({first_line(error)})", advice)
    return Problem(part.key, problem, advice) if problem else None


def _mismatch(ledger: Ledger, part: PresentPart, file: IO[bytes]) -> str:
    """Return how a part differs from its plan, an empty text if it does not.

    Raises:
        READ_ERRORS: A page is damaged.
    """
    parquet = open_parquet(file)
    # A part with the right SHA-256 need not be decoded further.
    columns = ["image_id"] if part.record else None
    batches = parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
    ids = pa.chunked_array([batch.column("image_id") for batch in batches], pa.string())
    if len(ids) != part.rows:
        return f"has {len(ids)} rows instead of the planned {part.rows}"
    if part.plan is None:
        return ""
    metadata = parquet.schema_arrow.metadata or {}
    planned = planned_metadata(part.plan, part.shard)
    del planned["schema_version"]  # the recipe covers it
    for name, expected in planned.items():
        if metadata.get(name.encode(), b"").decode() != expected:
            return f"has metadata of another {name.replace('_', ' ')}"
    if ids.combine_chunks() != read_shard(ledger, part.plan, part.shard)["image_id"].combine_chunks():
        return "holds other images than the planned ones"
    return ""


def _unexpected_files(
    layout: Layout, listed: Mapping[str, int], parts: Iterable[PresentPart], unknown: Iterable[int]
) -> Iterator[Problem]:
    """Yield the Parquet files that are no parts.

    Args:
        layout: The keys of the recipe.
        listed: Everything in the folder of the parts.
        parts: The parts that are explained by a run record or a plan.
        unknown: Generations of which neither can be read: nothing is said about files named like their parts.
    """
    explained = {part.key for part in parts}
    undecided = tuple(f"{layout.parts_folder}/{part_prefix(number)}" for number in unknown)
    for key in sorted(listed.keys() - explained):
        if key.endswith(".parquet") and not key.startswith(undecided):
            yield Problem(key, "is not named by any run record or unfinished plan", _UNEXPECTED)


def _generation_states(
    plans: Mapping[int, Plan], recorded: Mapping[int, Sequence[Part]], parts: Iterable[PresentPart]
) -> Iterator[GenerationState]:
    present = Counter(part.generation for part in parts)
    for number in sorted({*plans, *recorded}):
        shards = plans[number].shards if number in plans else len(recorded[number])
        yield GenerationState(number, number in recorded, present[number], shards)
