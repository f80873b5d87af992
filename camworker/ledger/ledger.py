"""Ledger: where everything of one recipe lies in OUT, and its records, each created once.

OUT/predictions/recipe=R/part-GGGG-SSSSSS.parquet   what the shards committed
OUT/ledger/recipe=R/recipe.json                     what made these rows, in full
OUT/ledger/recipe=R/plan-GGGG/N.parquet             items of a generation
OUT/ledger/recipe=R/plan-GGGG.json                  commits the plan
OUT/ledger/recipe=R/run-GGGG.json                   written last: the generation is complete
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from camworker.errors import CorruptedError, UsageError, first_line
from camworker.inputs import ReadPolicy
from camworker.ledger.recipe import Recipe, json_digest
from camworker.storage.store import Store

_PLAN: Final = re.compile(r"plan-(\d{4})\.json")
_RECIPE: Final = re.compile(r"ledger/recipe=(r[0-9a-f]{12})/recipe\.json")
_PART: Final = re.compile(r"part-(\d{4})-(\d{6})\.parquet")


@dataclass(frozen=True, slots=True)
class PlanFile:
    """One Parquet file of planned items: key, SHA-256, and its shards, a row group each."""

    key: str
    sha256: str
    first_shard: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A committed generation.

    Attributes:
        policy: How the files of the items are read. Its roots are not recorded: they were enforced when the
            items were listed.
    """

    recipe: str
    generation: int
    files: tuple[PlanFile, ...]
    policy: ReadPolicy

    @property
    def items(self) -> int:
        return sum(sum(file.rows) for file in self.files)

    @property
    def shards(self) -> int:
        return sum(len(file.rows) for file in self.files)

    @property
    def hash(self) -> str:
        """SHA-256 over the recipe, the generation and the hashes of the files."""
        return json_digest([self.recipe, self.generation, [file.sha256 for file in self.files]])


@dataclass(frozen=True, slots=True)
class Part:
    """What a run record says of one committed part. images: count by status."""

    shard: int
    key: str
    rows: int
    bytes: int
    sha256: str
    images: dict[str, int]


class Ledger:
    """One recipe's keys and records in an output's store."""

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe
        self._home = f"ledger/recipe={recipe}"
        self.parts_folder = f"predictions/recipe={recipe}"

    def write_recipe(self, recipe: Recipe) -> None:
        """Write recipe.json, unless it exists already."""
        self.store.create(f"{self._home}/recipe.json", _json(recipe.to_json()))

    def read_recipe(self) -> Recipe:
        """Read recipe.json.

        Raises:
            UsageError: Another version of camworker wrote it, with other columns.
            CorruptedError: It is missing, or it does not describe a recipe.
        """
        key = f"{self._home}/recipe.json"
        try:
            return Recipe.from_json(json.loads(self.store.read(key)))
        except FileNotFoundError as error:
            raise CorruptedError(f"{key} is missing: run camworker verify OUT") from error
        except (ValueError, CorruptedError) as error:
            raise CorruptedError(
                f"{key} is not a recipe ({first_line(error)}): run camworker verify OUT"
            ) from error
        except UsageError as error:
            raise UsageError(f"{key} cannot be read: {error}") from error

    def part_key(self, generation: int, shard: int) -> str:
        return f"{self.parts_folder}/part-{generation:04d}-{shard:06d}.parquet"

    def parts(self, generation: int | None = None) -> dict[tuple[int, int], str]:
        """Committed parts, of one generation or of all: (generation, shard) -> key, ascending."""
        found = {}
        start = "" if generation is None else f"part-{generation:04d}-"
        for entry in self.store.list(self.parts_folder, start):
            if match := _PART.fullmatch(entry.key.removeprefix(f"{self.parts_folder}/")):
                found[int(match[1]), int(match[2])] = entry.key
        return dict(sorted(found.items()))

    def generations(self) -> list[int]:
        """Committed plans, ascending."""
        names = (entry.key.removeprefix(f"{self._home}/") for entry in self.store.list(self._home, "plan-"))
        return sorted(int(match[1]) for name in names if (match := _PLAN.fullmatch(name)))

    def unfinished(self) -> list[Plan]:
        """The generations that are planned and have no run record."""
        return [self.read_plan(g) for g in self.generations() if self.read_run(g) is None]

    def plan_file_key(self, generation: int, number: int) -> str:
        return f"{self._home}/plan-{generation:04d}/{number}.parquet"

    def commit_plan(self, plan: Plan) -> bool:
        """Make plan its generation's. False if another planner was first: read_plan gives theirs."""
        record = {
            "recipe": plan.recipe,
            "generation": plan.generation,
            "files": [asdict(file) for file in plan.files],
            "verify": plan.policy.check_identity,
            "tables": dict(plan.policy.tables),
            "items": plan.items,
            "shards": plan.shards,
            "hash": plan.hash,
        }
        return self.store.create(f"{self._home}/plan-{plan.generation:04d}.json", _json(record))

    def read_plan(self, generation: int) -> Plan:
        record = json.loads(self.store.read(f"{self._home}/plan-{generation:04d}.json"))
        files = (PlanFile(**{**file, "rows": tuple(file["rows"])}) for file in record["files"])
        policy = ReadPolicy(record["verify"], tables=record["tables"])
        return Plan(record["recipe"], record["generation"], tuple(files), policy)

    def commit_run(self, generation: int, record: dict[str, Any]) -> bool:
        """Declare a generation complete. False if somebody has already."""
        return self.store.create(f"{self._home}/run-{generation:04d}.json", _json(record))

    def read_run(self, generation: int) -> dict[str, Any] | None:
        """A complete generation's record; None while it is unfinished."""
        try:
            return json.loads(self.store.read(f"{self._home}/run-{generation:04d}.json"))
        except FileNotFoundError:
            return None


def recipes(store: Store) -> list[str]:
    """The recipes that an output holds."""
    matches = (_RECIPE.fullmatch(entry.key) for entry in store.list("ledger"))
    return sorted(match[1] for match in matches if match)


def open_ledger(store: Store, recipe: str | None, where: str) -> Ledger:
    """The ledger of a recipe, or of the only one. Raises UsageError when that names none or several."""
    have = recipes(store)
    if not have:
        raise UsageError(f"{where} holds no predictions: run camworker localize INPUT --output {where}")
    if recipe is None and len(have) > 1:
        raise UsageError(f"{where} holds several recipes: choose one with --recipe ({', '.join(have)})")
    if recipe is not None and recipe not in have:
        raise UsageError(f"{where} holds no recipe {recipe}: it holds {', '.join(have)}")
    return Ledger(store, recipe or have[0])


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()

