"""The names of everything that an output holds: keys in its store, made and recognised here alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LEDGERS: Final = "ledger"
PREDICTIONS_FOLDER: Final = "predictions"

_RECIPE_FOLDER: Final = re.compile(r"ledger/recipe=(r[0-9a-f]{12})/(.+)")
_PART: Final = re.compile(r"part-(\d{4})-(\d{6})\.parquet")
_PLAN: Final = re.compile(r"plan-(\d{4})\.json")
_RUN: Final = re.compile(r"run-(\d{4})\.json")
_LEASE: Final = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys of one recipe's objects.

    ```
    predictions/recipe=R/part-GGGG-SSSSSS.parquet   rows of shard S of generation G
    ledger/recipe=R/recipe.json                     the settings that R stands for
    ledger/recipe=R/plan-GGGG/N.parquet             planned items of a generation
    ledger/recipe=R/plan-GGGG.json                  commits the plan
    ledger/recipe=R/run-GGGG.json                   written last: the generation is complete
    ledger/recipe=R/lease/NNNNNNNN.json             which run works on the recipe
    ```

    Attributes:
        recipe: Id of the recipe.
    """

    recipe: str

    @property
    def folder(self) -> str:
        """The folder of the ledger."""
        return f"{LEDGERS}/recipe={self.recipe}"

    @property
    def parts_folder(self) -> str:
        """The folder of the parts."""
        return f"{PREDICTIONS_FOLDER}/recipe={self.recipe}"

    @property
    def lease_folder(self) -> str:
        """The folder of the lease records."""
        return f"{self.folder}/lease"

    @property
    def recipe_key(self) -> str:
        """The key of recipe.json."""
        return f"{self.folder}/recipe.json"

    def part_key(self, generation: int, shard: int) -> str:
        """Return the key of a part."""
        return f"{self.parts_folder}/{part_prefix(generation)}{shard:06d}.parquet"

    def plan_file_key(self, generation: int, number: int) -> str:
        """Return the key of a file of planned items."""
        return f"{self.folder}/plan-{generation:04d}/{number}.parquet"

    def plan_key(self, generation: int) -> str:
        """Return the key of the record that commits a plan."""
        return f"{self.folder}/plan-{generation:04d}.json"

    def run_key(self, generation: int) -> str:
        """Return the key of a run record."""
        return f"{self.folder}/run-{generation:04d}.json"

    def lease_key(self, number: int) -> str:
        """Return the key of a lease record."""
        return f"{self.lease_folder}/{number:08d}.json"

    def parse_part_key(self, key: str) -> tuple[int, int] | None:
        """Return the (generation, shard) of a part, or None for any other key."""
        match = _PART.fullmatch(key.removeprefix(f"{self.parts_folder}/"))
        return (int(match[1]), int(match[2])) if match else None

    def parts_among(self, keys: Iterable[str]) -> dict[tuple[int, int], str]:
        """Return the keys that are parts by (generation, shard), in ascending order."""
        parts = {shard_id: key for key in keys if (shard_id := self.parse_part_key(key)) is not None}
        return dict(sorted(parts.items()))

    def parse_plan_key(self, key: str) -> int | None:
        """Return the generation that a record commits, or None for any other key."""
        return _number(_PLAN, key, self.folder)

    def parse_run_key(self, key: str) -> int | None:
        """Return the generation of a run record, or None for any other key."""
        return _number(_RUN, key, self.folder)

    def parse_lease_key(self, key: str) -> int | None:
        """Return the number of a lease record, or None for any other key."""
        return _number(_LEASE, key, self.lease_folder)


def part_prefix(generation: int) -> str:
    """Return how the names of a generation's parts begin."""
    return f"part-{generation:04d}-"


def recipe_of(key: str) -> str | None:
    """Return the id of the recipe whose ledger holds a key, or None if no ledger does."""
    match = _RECIPE_FOLDER.fullmatch(key)
    return match[1] if match else None


def _number(pattern: re.Pattern[str], key: str, folder: str) -> int | None:
    match = pattern.fullmatch(key.removeprefix(f"{folder}/"))
    return int(match[1]) if match else None
