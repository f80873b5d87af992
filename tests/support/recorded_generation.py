"""A generation as localize leaves it: plan, parts and run record, without a cluster."""

from dataclasses import asdict

from camworker.inference.shard import run_shard
from camworker.inputs import ReadPolicy
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import write_generation
from camworker.storage.local import LocalStore
from support.recipes import make_recipe

RECIPE = make_recipe()


def open_output(out):
    """The ledger of an output of the tiny network, its recipe recorded."""
    ledger = Ledger(LocalStore(out), RECIPE.id)
    ledger.write_recipe(RECIPE)
    return ledger


def complete_generation(ledger, localizer, items, *, generation=1, size=4, shards=None):
    """Plan items, commit the parts of these shards, and the run record if they are all (default)."""
    plan = write_generation(ledger, generation, items, size, ReadPolicy())
    chosen = range(plan.shards) if shards is None else shards
    options = {"decode_threads": 2, "runtime_info": {}, "on_batch": lambda statuses: None}
    parts = [run_shard(ledger, plan, shard, localizer, **options).part for shard in chosen]
    if len(parts) == plan.shards:
        record_run(ledger, plan, parts)
    return plan


def record_run(ledger, plan, parts):
    images = {}
    for part in parts:
        for status, count in part.images.items():
            images[status] = images.get(status, 0) + count
    record = {
        "recipe": plan.recipe,
        "generation": plan.generation,
        "plan_hash": plan.hash,
        "items": plan.items,
        "images": images,
        "parts": [asdict(part) for part in parts],
    }
    assert ledger.commit_run(plan.generation, record)
