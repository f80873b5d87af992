"""`Snapshot`: what a recipe held at one moment, and which of its rows are current."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Final, Self, cast

import pyarrow as pa
import pyarrow.compute as pc

from camworker.errors import CorruptedError, UsageError, first_line
from camworker.ledger.inventory import PartInventory, list_parts, planned_again
from camworker.ledger.ledger import Ledger
from camworker.ledger.recipe import Recipe
from camworker.ledger.records import Part, Plan, RunRecord
from camworker.schemas import SCHEMA_VERSION, CamShape
from camworker.storage.parquet import READ_ERRORS, open_parquet

_KEYS: Final = ("image_id", "generation", "status")
_THREADS: Final = 16


@dataclass(frozen=True)
class Snapshot:
    """What a recipe held when the snapshot was loaded. Plans and recipe.json are read when they are needed.

    The *current* row of an image is the row of the latest generation that has one, unless that row says that
    the image was removed.

    Attributes:
        ledger: The ledger of the recipe.
        generations: Numbers of the planned generations, in ascending order.
        runs: The run records of the complete generations.
        inventory: The parts that are present, and those that the run records name.
    """

    ledger: Ledger
    generations: tuple[int, ...]
    runs: Mapping[int, RunRecord]
    inventory: PartInventory
    _plans: dict[int, Plan] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, ledger: Ledger) -> Self:
        """Read the run records of a recipe, and list its parts.

        Raises:
            CorruptedError: A run record cannot be read.
        """
        generations = tuple(ledger.generations())
        with ThreadPoolExecutor(_THREADS) as threads:
            records = list(threads.map(ledger.read_run, generations))
        runs = {number: run for number, run in zip(generations, records, strict=True) if run}
        # The parts are listed last: whatever a run record names was present before the record was.
        inventory = PartInventory(list_parts(ledger), {number: run.parts for number, run in runs.items()})
        return cls(ledger, generations, runs, inventory)

    @property
    def complete(self) -> bool:
        """Whether every planned generation is complete."""
        return len(self.runs) == len(self.generations)

    @property
    def planned(self) -> int:
        """The number of planned items, over all generations."""
        return sum(self.plan(number).items for number in self.generations)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, see `Ledger.read_recipe`."""
        return self.ledger.read_recipe()

    @cached_property
    def parts(self) -> dict[tuple[int, int], str]:
        """The key of each part that is present by (generation, shard), in ascending order."""
        return self.ledger.layout.parts_among(self.inventory.listed)

    def plan(self, generation: int) -> Plan:
        """Return the plan of a generation, see `Ledger.read_plan`."""
        if generation not in self._plans:
            self._plans[generation] = self.ledger.read_plan(generation)
        return self._plans[generation]

    def check(self) -> None:
        """Check that there is something to read, and that no part of a complete generation is lost.

        Raises:
            UsageError: Nothing is committed yet.
            CorruptedError: A part that a run record names has another size, or it is missing and no later
                generation holds its images.
        """
        for part in self.inventory.wrong_size.values():
            size = self.inventory.listed[part.key]
            raise _corrupted(part.key, f"has {size} bytes, but its run record says {part.bytes}")
        for (generation, shard), part in self.inventory.absent.items():
            if not planned_again(self.ledger, generation, shard):
                raise _corrupted(part.key, "is missing, although its run record names it")
        if not self.parts:
            raise UsageError(f"recipe {self.ledger.recipe} has no committed part yet: run localize again")

    def cam_shape(self) -> CamShape:
        """Return the shape of the class activation maps of a row, read from the first part.

        Raises:
            CorruptedError: The part is not as it was committed.
        """
        shape = self._shape(b"cam_shape")
        if shape is None:
            raise CorruptedError("the parts do not say which shape their maps have: run camworker verify OUT")
        return shape

    def refined_shape(self) -> CamShape | None:
        """Return the shape of the refined maps of a row, read from the first part; None if it has none.

        Raises:
            CorruptedError: The part is not as it was committed.
        """
        return self._shape(b"refined_shape")

    def _shape(self, name: bytes) -> CamShape | None:
        return CamShape.from_json(self._first_metadata.get(name, b"null"))

    @cached_property
    def _first_metadata(self) -> Mapping[bytes, bytes]:
        shard_id, key = next(iter(self.parts.items()))
        table = _read(self.ledger, key, ["status"], self.inventory.recorded.get(shard_id))
        return table.schema.metadata or {}

    def later_rows(self) -> pa.Table | None:
        """Return which images have a row in a generation after the first.

        Returns:
            A table of image_id and generation_max, the last generation that has a row of the image; None if
            all parts are of one generation. It is held in memory: it grows with the images that were planned
            more than once.

        Raises:
            CorruptedError: A part is not as it was written.
        """
        first = min(generation for generation, _ in self.parts)
        later = [key for (generation, _), key in self.parts.items() if generation > first]
        if not later:
            return None
        return _last_generations([_read(self.ledger, key, ["image_id", "generation"]) for key in later])

    def iter_latest(
        self, columns: Sequence[str] | None = None, *, hashed: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the current rows, one table for each part.

        Args:
            columns: The columns to read; all by default.
            hashed: Whether to compare every byte of a part with its run record. Otherwise the page checksums
                of the columns that are read are checked.

        Raises:
            UsageError: Nothing is committed yet.
            CorruptedError: A part is lost, or what is read of it is not as it was written.
        """
        self.check()
        recorded = self.inventory.recorded if hashed else {}
        later = self.later_rows()
        for shard_id, key in self.parts.items():
            yield read_latest(self.ledger, key, later, columns, recorded.get(shard_id))

    def rows_of(self, image_ids: Iterable[str]) -> pa.Table | None:
        """Return the current rows of some images, with all columns; None if none of them has one.

        Only parts that hold one of the images are read whole.

        Raises:
            UsageError: Nothing is committed yet.
            CorruptedError: A part is lost, or what is read of it is not as it was written.
        """
        self.check()
        wanted = pa.array(image_ids, pa.string())
        tables = []
        for key in self.parts.values():
            ids = _read(self.ledger, key, ["image_id"])["image_id"]
            if pc.any(pc.is_in(ids, wanted)).as_py():
                rows = _read(self.ledger, key, None)
                tables.append(rows.filter(pc.is_in(rows["image_id"], wanted)))
        if not tables:
            return None
        later = _last_generations([table.select(["image_id", "generation"]) for table in tables])
        rows = pa.concat_tables(_current(table, later) for table in tables)
        return rows if rows.num_rows else None


def read_latest(
    ledger: Ledger,
    key: str,
    later: pa.Table | None,
    columns: Sequence[str] | None = None,
    record: Part | None = None,
) -> pa.Table:
    """Return the current rows of one part.

    Args:
        ledger: The ledger of the recipe.
        key: Key of the part.
        later: The result of `Snapshot.later_rows`; None takes every row for the last one of its image.
        columns: The columns to read; all by default.
        record: The part's entry in its run record, with which every byte is compared; None checks only the
            page checksums of the columns that are read.

    Raises:
        CorruptedError: What is read is not as it was written.
    """
    needed = [*dict.fromkeys([*_KEYS, *columns])] if columns is not None else None
    table = _current(_read(ledger, key, needed, record), later)
    return table.select(list(columns)) if columns is not None else table


def count_statuses(ledger: Ledger, keys: Iterable[str]) -> Counter[str]:
    """Return the number of rows by status in these parts.

    Raises:
        CorruptedError: A part is not as it was written.
    """
    counts = Counter[str]()
    for key in keys:
        statuses = _read(ledger, key, ["status"])["status"]
        counts.update(cast(list[str], statuses.to_pylist()))
    return counts


def _last_generations(tables: Sequence[pa.Table]) -> pa.Table:
    """Return image_id and generation_max of tables with image_id and generation."""
    keys = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    return keys.group_by("image_id").aggregate([("generation", "max")]).combine_chunks()


def _current(table: pa.Table, later: pa.Table | None) -> pa.Table:
    """Return the rows that are current; an image that is not in `later` has no other row."""
    current = pc.not_equal(table["status"], pa.scalar("removed"))
    if later is not None:
        index = pc.index_in(table["image_id"], later["image_id"])
        last = pc.fill_null(later["generation_max"].take(index), table["generation"])
        current = pc.and_(current, pc.equal(last, table["generation"]))
    return table.filter(current)


def _read(ledger: Ledger, key: str, columns: list[str] | None, record: Part | None = None) -> pa.Table:
    """Read columns of a part; with `record`, compare all of its bytes first."""
    try:
        if record is None:
            with ledger.store.open(key) as file:
                return _parse(file, columns)
        data = ledger.store.read(key)
        if hashlib.sha256(data).hexdigest() == record.sha256:
            return _parse(io.BytesIO(data), columns)
    except READ_ERRORS as error:
        raise _corrupted(key, f"cannot be read ({first_line(error)})") from error
    raise _corrupted(key, "has changed since it was committed: its SHA-256 is not that of its run record")


def _parse(file: IO[bytes], columns: list[str] | None) -> pa.Table:
    parquet = open_parquet(file)
    version = (parquet.schema_arrow.metadata or {}).get(b"schema_version", b"").decode()
    if not version:
        raise KeyError("no schema version")
    if version != str(SCHEMA_VERSION):
        raise UsageError(
            f"a part has the schema version {version}, and this version of camworker reads {SCHEMA_VERSION}"
        )
    table = parquet.read(columns=columns)
    if missing := set(columns or ()) - set(table.column_names):
        raise KeyError(f"no column {', '.join(sorted(missing))}")
    return table


def _corrupted(key: str, problem: str) -> CorruptedError:
    return CorruptedError(f"{key} {problem}: run camworker verify OUT")
