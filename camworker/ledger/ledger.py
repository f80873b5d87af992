"""`Ledger`: the records of one recipe in an output. Each is created once and never changed."""

import json

from camworker.errors import CorruptedError, UsageError, first_line
from camworker.ledger.layout import LEDGERS, Layout, part_prefix, recipe_of
from camworker.ledger.recipe import Recipe
from camworker.ledger.records import Plan, RunRecord
from camworker.storage.store import Store


class Ledger:
    """The records of one recipe.

    Attributes:
        store: The store of the output.
        recipe: Id of the recipe.
        layout: The keys of its objects.
    """

    def __init__(self, store: Store, recipe: str) -> None:
        self.store = store
        self.recipe = recipe
        self.layout = Layout(recipe)

    @staticmethod
    def recipes(store: Store, *, damaged: bool = False) -> list[str]:
        """Return the ids of the recipes in an output, sorted.

        Args:
            store: The store of the output.
            damaged: Whether to include recipes of which recipe.json is missing.
        """
        ids = set()
        for entry in store.list(LEDGERS):
            recipe = recipe_of(entry.key)
            if recipe and (damaged or entry.key == Layout(recipe).recipe_key):
                ids.add(recipe)
        return sorted(ids)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write recipe.json, unless it exists already."""
        self.store.create(self.layout.recipe_key, _encode(recipe.to_json()))

    def read_recipe(self) -> Recipe:
        """Read recipe.json.

        Raises:
            UsageError: Another version of camworker wrote it, with other columns.
            CorruptedError: It is missing, or it does not describe a recipe.
        """
        key = self.layout.recipe_key
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

    def parts(self, generation: int | None = None) -> dict[tuple[int, int], str]:
        """List the committed parts of one generation, or of all.

        Returns:
            The key of each part by (generation, shard), in ascending order.
        """
        start = "" if generation is None else part_prefix(generation)
        entries = self.store.list(self.layout.parts_folder, start)
        return self.layout.parts_among(entry.key for entry in entries)

    def generations(self) -> list[int]:
        """Return the numbers of the committed plans, in ascending order."""
        keys = (entry.key for entry in self.store.list(self.layout.folder, "plan-"))
        return sorted(number for key in keys if (number := self.layout.parse_plan_key(key)) is not None)

    def unfinished(self) -> list[Plan]:
        """Return the plans that have no run record."""
        return [self.read_plan(number) for number in self.generations() if not self.is_complete(number)]

    def commit_plan(self, plan: Plan) -> bool:
        """Commit a plan as that of its generation.

        Returns:
            False if another planner was first; `read_plan` returns its plan.
        """
        return self.store.create(self.layout.plan_key(plan.generation), _encode(plan.to_json()))

    def read_plan(self, generation: int) -> Plan:
        """Read a committed plan.

        Raises:
            CorruptedError: The record does not describe a plan.
            FileNotFoundError: The generation is not planned.
        """
        key = self.layout.plan_key(generation)
        data = self.store.read(key)
        try:
            return Plan.from_json(json.loads(data))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptedError(f"{key} cannot be read: run camworker verify OUT") from error

    def commit_run(self, record: RunRecord) -> bool:
        """Declare a generation complete.

        Returns:
            False if it was complete already; its first record stays.
        """
        return self.store.create(self.layout.run_key(record.generation), _encode(record.to_json()))

    def is_complete(self, generation: int) -> bool:
        """Return whether a generation has a run record."""
        return self.store.exists(self.layout.run_key(generation))

    def read_run(self, generation: int) -> RunRecord | None:
        """Read a run record, or return None while the generation is unfinished.

        Raises:
            CorruptedError: The record cannot be read.
        """
        try:
            data = self.store.read(self.layout.run_key(generation))
        except FileNotFoundError:
            return None
        try:
            return RunRecord.from_json(json.loads(data))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptedError(
                f"the run record of generation {generation} cannot be read: run camworker verify OUT"
            ) from error


def open_ledger(store: Store, recipe: str | None, where: str) -> Ledger:
    """Open the ledger of a recipe, or of the only one that an output holds.

    Args:
        store: The store of the output.
        recipe: Id of the recipe, or None.
        where: The location of the output, for messages.

    Raises:
        UsageError: The output does not hold that recipe, or `recipe` is None and it holds none or several.
    """
    ids = Ledger.recipes(store)
    if not ids:
        raise UsageError(f"{where} holds no predictions: run camworker localize INPUT --output {where}")
    if recipe is None and len(ids) > 1:
        raise UsageError(f"{where} holds several recipes ({', '.join(ids)}): choose one", parameter="recipe")
    if recipe is not None and recipe not in ids:
        raise UsageError(f"{where} holds no recipe {recipe}: it holds {', '.join(ids)}")
    return Ledger(store, recipe or ids[0])


def _encode(content: object) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
