"""Write a generation as localize does, with plan, parts and run record, but without a cluster."""

from dataclasses import replace

from camworker.inference.shard import run_shard
from camworker.inputs import ReadPolicy
from camworker.ledger.ledger import Ledger
from camworker.ledger.plan import write_generation
from camworker.storage.local import LocalStore
from support.recipes import make_recipe
from support.run_records import make_run_record

RECIPE = make_recipe()


def open_output(out):
    """Return the ledger of an output of the tiny network, with its recipe.json."""
    ledger = Ledger(LocalStore(out), RECIPE.id)
    ledger.write_recipe(RECIPE)
    return ledger


def complete_generation(ledger, localizer, items, *, generation=1, size=4, shards=None):
    """Plan items and commit the parts of these shards; write the run record if they are all (default)."""
    plan = write_generation(ledger, generation, items, size, ReadPolicy())
    chosen = range(plan.shards) if shards is None else shards
    options = {"decode_threads": 2, "runtime_info": {}, "on_batch": lambda statuses: None}
    parts = [run_shard(ledger, plan, shard, localizer, **options).part for shard in chosen]
    if len(parts) == plan.shards:
        record_run(ledger, plan, parts)
    return plan


def record_run(ledger, plan, parts):
    """Complete a generation."""
    assert ledger.commit_run(
        replace(make_run_record(ledger, plan.generation, parts, plan.hash), items=plan.items)
    )
