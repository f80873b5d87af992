"""The ledger: the documented keys, and records that are written once."""

import dataclasses
import json

import pytest

from camworker.errors import UsageError
from camworker.inputs import ReadPolicy
from camworker.ledger.ledger import Ledger, open_ledger
from camworker.ledger.records import Part, Plan, PlanFile
from camworker.storage.local import LocalStore
from camworker.storage.memory import MemoryStore
from support.recipes import make_recipe
from support.run_records import make_run_record

RECIPE = "r0123456789ab"
OTHER = "rba9876543210"


@pytest.fixture(params=["local", "memory"])
def ledger(request, tmp_path):
    return Ledger(LocalStore(tmp_path) if request.param == "local" else MemoryStore(), RECIPE)


def make_plan(ledger, generation=1, **changes):
    files = (
        PlanFile(ledger.layout.plan_file_key(generation, 0), "aa", 0, (3, 3)),
        PlanFile(ledger.layout.plan_file_key(generation, 2), "bb", 2, (1,)),
    )
    return dataclasses.replace(Plan(ledger.recipe, generation, files, ReadPolicy()), **changes)


def keys(ledger):
    return sorted(entry.key for entry in ledger.store.list())


def test_keys(ledger):
    """Other programs rely on these names, so the test spells them out."""
    assert ledger.layout.part_key(1, 2) == f"predictions/recipe={RECIPE}/part-0001-000002.parquet"
    assert ledger.layout.part_key(1234, 567890) == f"predictions/recipe={RECIPE}/part-1234-567890.parquet"
    assert ledger.layout.plan_file_key(7, 0) == f"ledger/recipe={RECIPE}/plan-0007/0.parquet"
    ledger.write_recipe(make_recipe())
    ledger.commit_plan(make_plan(ledger, 7))
    ledger.commit_run(make_run_record(ledger, 7))
    assert keys(ledger) == [
        f"ledger/recipe={RECIPE}/plan-0007.json",
        f"ledger/recipe={RECIPE}/recipe.json",
        f"ledger/recipe={RECIPE}/run-0007.json",
    ]


def test_recipe_is_written_once(ledger):
    recipe = make_recipe(("größe", "dog"), network="größe", mean=(0.5, 0.25, 0.125))
    ledger.write_recipe(recipe)
    ledger.write_recipe(make_recipe(network="other"))
    assert ledger.read_recipe() == recipe


@pytest.mark.parametrize("policy", [ReadPolicy(), ReadPolicy(False, tables={"s3://b/t.parquet": "1-2"})])
def test_plan_round_trip(ledger, policy):
    plan = make_plan(ledger, 3, policy=policy)
    assert ledger.commit_plan(plan) is True
    assert ledger.read_plan(3) == plan
    assert ledger.read_plan(3).hash == plan.hash


def test_a_plan_records_its_counts(ledger):
    plan = make_plan(ledger)
    assert (plan.items, plan.shards) == (7, 3)
    ledger.commit_plan(plan)
    record = json.loads(ledger.store.read(f"ledger/recipe={RECIPE}/plan-0001.json"))
    assert (record["items"], record["shards"], record["hash"]) == (7, 3, plan.hash)
    assert (record["verify"], record["tables"]) == (True, {})


def test_the_first_plan_stays(ledger):
    first = make_plan(ledger)
    ledger.commit_plan(first)
    assert ledger.commit_plan(make_plan(ledger, policy=ReadPolicy(check_identity=False))) is False
    assert ledger.read_plan(1) == first


def test_plan_hash_tells_plans_apart(ledger):
    plan = make_plan(ledger)
    other_file = dataclasses.replace(plan.files[0], sha256="cc")
    others = [
        make_plan(ledger, recipe=OTHER),
        make_plan(ledger, generation=2),
        make_plan(ledger, files=(other_file, plan.files[1])),
        make_plan(ledger, files=plan.files[::-1]),
        make_plan(ledger, files=plan.files[:1]),
    ]
    assert len({p.hash for p in [plan, *others]}) == 6
    # The key of a file does not matter.
    moved = dataclasses.replace(plan.files[0], key="elsewhere")
    assert make_plan(ledger, files=(moved, plan.files[1])).hash == plan.hash


def test_generations_are_committed_plans(ledger):
    assert ledger.generations() == []
    for generation in (2, 10, 1):
        ledger.commit_plan(make_plan(ledger, generation))
    ledger.store.create(ledger.layout.plan_file_key(11, 0), b"of a planner that died")
    ledger.store.create(f"ledger/recipe={RECIPE}/plan-0012.json.bak", b"")
    ledger.store.create(f"ledger/recipe={RECIPE}/old/plan-0013.json", b"")
    Ledger(ledger.store, OTHER).commit_plan(make_plan(Ledger(ledger.store, OTHER), 14))
    assert ledger.generations() == [1, 2, 10]


def test_run_record_is_written_once(ledger):
    assert ledger.read_run(1) is None
    part = Part(0, ledger.layout.part_key(1, 0), 3, 100, "aa", {"ok": 2, "read_error": 1})
    assert ledger.commit_run(make_run_record(ledger, 1, [part])) is True
    assert ledger.commit_run(make_run_record(ledger, 1)) is False
    assert ledger.read_run(1) == make_run_record(ledger, 1, [part])
    assert ledger.read_run(2) is None


def test_parts_are_in_ascending_order(ledger):
    assert ledger.parts() == {}
    for generation, shard in ((2, 0), (1, 10), (1, 2)):
        ledger.store.create(ledger.layout.part_key(generation, shard), b"")
    assert list(ledger.parts().items()) == [
        ((1, 2), ledger.layout.part_key(1, 2)),
        ((1, 10), ledger.layout.part_key(1, 10)),
        ((2, 0), ledger.layout.part_key(2, 0)),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "part-0001-000009.parquet.tmp",
        ".part-0001-000009.parquet.swp",
        "part-1-9.parquet",
        "apart-0001-000009.parquet",
        "_SUCCESS",
        # A copy in a subfolder must not be taken for the part.
        "backup/part-0001-000009.parquet",
        "backup/part-0001-000001.parquet",
        "zz/part-0001-000001.parquet",
    ],
)
def test_parts_ignore_foreign_files(ledger, name):
    ledger.store.create(ledger.layout.part_key(1, 1), b"")
    ledger.store.create(f"predictions/recipe={RECIPE}/{name}", b"")
    ledger.store.create(f"predictions/recipe={OTHER}/part-0001-000009.parquet", b"")
    assert ledger.parts() == {(1, 1): ledger.layout.part_key(1, 1)}


def test_recipes_of_an_output(ledger):
    assert Ledger.recipes(ledger.store) == []
    for name in (RECIPE, OTHER):
        Ledger(ledger.store, name).write_recipe(make_recipe())
    ledger.store.create("ledger/recipe=r123/recipe.json", b"{}")
    ledger.store.create(f"ledger/copy/ledger/recipe={RECIPE}/recipe.json", b"{}")
    ledger.store.create("ledger/recipe=rffffffffffff/plan-0001.json", b"{}")
    assert Ledger.recipes(ledger.store) == sorted([RECIPE, OTHER])


def test_open_ledger(ledger):
    store = ledger.store
    with pytest.raises(UsageError, match="OUT holds no predictions"):
        open_ledger(store, None, "OUT")
    ledger.write_recipe(make_recipe())
    assert open_ledger(store, None, "OUT").recipe == RECIPE
    assert open_ledger(store, RECIPE, "OUT").recipe == RECIPE
    with pytest.raises(UsageError, match=f"no recipe {OTHER}: it holds {RECIPE}"):
        open_ledger(store, OTHER, "OUT")
    with pytest.raises(UsageError):
        open_ledger(store, "", "OUT")

    Ledger(store, OTHER).write_recipe(make_recipe())
    with pytest.raises(UsageError, match=f"several recipes.*{RECIPE}, {OTHER}"):
        open_ledger(store, None, "OUT")
    assert open_ledger(store, OTHER, "OUT").recipe == OTHER


def test_the_fields_of_a_run_record(ledger):
    """Other programs read run records, so their keys and the order of these never change."""
    ledger.commit_run(make_run_record(ledger, 1))
    content = json.loads(ledger.store.read(ledger.layout.run_key(1)))
    costs = ["seconds", "images_per_second", "stages", "read_bytes", "failed_attempts", "restarts"]
    counts = ["recipe", "generation", "plan_hash", "items", "images"]
    assert list(content) == [*counts, *costs, "resolved", "versions", "finished", "parts"]


def test_unknown_fields_of_a_run_record_are_ignored(ledger):
    record = make_run_record(ledger, 1)
    content = {**record.to_json(), "later": 1}
    ledger.store.create(ledger.layout.run_key(1), json.dumps(content).encode())
    assert ledger.read_run(1) == record
