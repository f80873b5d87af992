"""The parts of a recipe: those that are present, those that its run records name, and those that are lost."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Final

import pyarrow.compute as pc

from camworker.errors import CommitError, CorruptedError
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import read_shard
from camworker.ledger.records import Part
from camworker.storage.parquet import READ_ERRORS, open_parquet

_CHUNK: Final = 4 * 2**20  # bytes hashed at a time


@dataclass(frozen=True)
class PartInventory:
    """The parts of a recipe that are present, and those that its run records name.

    Attributes:
        listed: Size in bytes of everything in the folder of the parts, by key.
        named: The parts that the run record of each complete generation names.
    """

    listed: Mapping[str, int]
    named: Mapping[int, Sequence[Part]]

    @cached_property
    def recorded(self) -> dict[tuple[int, int], Part]:
        """The parts that run records name, by (generation, shard)."""
        return {(number, part.shard): part for number, parts in self.named.items() for part in parts}

    @property
    def absent(self) -> dict[tuple[int, int], Part]:
        """The recorded parts that are not present."""
        return {shard_id: part for shard_id, part in self.recorded.items() if part.key not in self.listed}

    @property
    def wrong_size(self) -> dict[tuple[int, int], Part]:
        """The recorded parts that are present with another number of bytes."""
        return {
            shard_id: part
            for shard_id, part in self.recorded.items()
            if self.listed.get(part.key, part.bytes) != part.bytes
        }


def list_parts(ledger: Ledger) -> dict[str, int]:
    """Return the size in bytes of everything in the folder of a recipe's parts, by key."""
    return {entry.key: entry.size for entry in ledger.store.list(ledger.layout.parts_folder)}


def planned_again(ledger: Ledger, generation: int, shard: int) -> bool:
    """Return whether later generations hold every image of a shard, so that its part is not needed any more.

    Damaged plans give False.
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
    except (*READ_ERRORS, CommitError, CorruptedError):
        return False


def sha256_of(file: IO[bytes]) -> str:
    """Return the SHA-256, as hex digits, of a file from its current position to its end."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
