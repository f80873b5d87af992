"""What a recipe has committed: its parts as listed and as its run records name them, and which are lost."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Final

import pyarrow.compute as pc

from camworker.errors import CommitError, CorruptedError
from camworker.ledger.ledger import Ledger, Part
from camworker.ledger.plan import read_shard
from camworker.storage.parquet import READ_ERRORS, open_parquet

_CHUNK: Final = 4 * 2**20  # bytes hashed at a time
_THREADS: Final = 16


@dataclass(frozen=True, slots=True)
class PartInventory:
    """What is there beside what was: listed, bytes by key; recorded, parts by (generation, shard)."""

    listed: Mapping[str, int]
    recorded: Mapping[tuple[int, int], Part]

    @property
    def absent(self) -> dict[tuple[int, int], Part]:
        """Recorded and not there."""
        return {place: part for place, part in self.recorded.items() if part.key not in self.listed}

    @property
    def misshapen(self) -> dict[tuple[int, int], Part]:
        """Recorded and there, with another number of bytes."""
        return {
            place: part
            for place, part in self.recorded.items()
            if self.listed.get(part.key, part.bytes) != part.bytes
        }


def inventory_parts(ledger: Ledger) -> PartInventory:
    """List a recipe's parts beside its run records. Raises CorruptedError where a record cannot be read."""
    # Records before the listing: what they name was there already, and parts are never taken away.
    recorded = recorded_parts(ledger)
    return PartInventory(list_parts(ledger), recorded)


def list_parts(ledger: Ledger) -> dict[str, int]:
    """Bytes of everything in the folder of a recipe's parts, by key."""
    return {entry.key: entry.size for entry in ledger.store.list(ledger.parts_folder)}


def recorded_parts(ledger: Ledger) -> dict[tuple[int, int], Part]:
    """Parts by (generation, shard), as the run records of complete generations say. Raises CorruptedError."""
    generations = ledger.generations()
    with ThreadPoolExecutor(_THREADS) as threads:
        runs = list(threads.map(lambda generation: _parts_of(ledger, generation), generations))
    return {
        (generation, part.shard): part
        for generation, parts in zip(generations, runs, strict=True)
        for part in parts
    }


def parts_in(record: dict[str, Any]) -> list[Part]:
    """The parts that a run record names. Raises KeyError or TypeError where it is none."""
    return [Part(**part) for part in record["parts"]]


def planned_again(ledger: Ledger, generation: int, shard: int) -> bool:
    """Whether generations after this one hold every image of the shard: then its part is not missed.

    False where the plans do not tell, because they are damaged.
    """
    try:
        missing = read_shard(ledger, ledger.read_plan(generation), shard)["image_id"]
        for later in ledger.generations():
            if later > generation and len(missing):
                for file in ledger.read_plan(later).files:
                    with ledger.store.open(file.key) as opened:
                        ids = open_parquet(opened).read(["image_id"])
                    missing = missing.filter(pc.invert(pc.is_in(missing, ids["image_id"])))
        return not len(missing)
    except (*READ_ERRORS, CommitError):
        return False


def sha256_of(file: IO[bytes]) -> str:
    """The SHA-256 of a file from here to its end, a few MB at a time."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _parts_of(ledger: Ledger, generation: int) -> list[Part]:
    try:
        record = ledger.read_run(generation)
        return parts_in(record) if record else []
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptedError(
            f"the run record of generation {generation} cannot be read: run camworker verify OUT"
        ) from error
