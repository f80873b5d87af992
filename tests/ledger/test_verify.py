"""verify: an untouched output has no problems; every damage is named, with advice on how to repair it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.dataset import latest
from camworker.errors import CorruptedError
from camworker.ledger.inventory import planned_again
from camworker.ledger.ledger import Ledger
from camworker.ledger.verify import check_parts, survey, unexpected_recipes
from jobs import cli
from support.damage import HOME, NAME, PARTS, edit, flip, problems, verify
from support.factories import photographs_of
from support.recipes import make_recipe
from support.recorded_generation import complete_generation, open_output

pytest_plugins = ["support.damage_fixtures"]


def test_an_untouched_output(out, capsys):
    code, content, text = verify(out, capsys)
    assert code == 0
    files = list((out / "predictions").rglob("*.parquet"))
    assert content == {
        "recipes": [
            {
                "recipe": NAME,
                "generations": [
                    {"generation": 1, "complete": True, "parts": 3, "shards": 3},
                    {"generation": 2, "complete": False, "parts": 1, "shards": 2},
                ],
                "parts": 4,
                "bytes": sum(path.stat().st_size for path in files),
                "replaced": [],
            }
        ],
        "parts": 4,
        "bytes": sum(path.stat().st_size for path in files),
        "problems": [],
    }
    assert "generation 2 is unfinished (1 of 2 parts): run localize again" in text
    assert text.endswith("every committed byte is unchanged\n")


@pytest.mark.parametrize("offset", [0, 100, -1, -5, -200, -2000])
def test_a_flipped_bit_in_a_part(out, capsys, offset):
    key = f"{PARTS}/part-0001-000001.parquet"
    flip(out / key, offset)
    ((reported, (problem, advice)),) = problems(out, capsys).items()
    assert reported == key
    assert problem == "does not have the SHA-256 that its run record says"
    assert advice.startswith("delete it and run localize again")


def test_a_truncated_part_and_a_missing_part(out, capsys):
    short, gone = f"{PARTS}/part-0001-000000.parquet", f"{PARTS}/part-0001-000002.parquet"
    size = (out / short).stat().st_size
    (out / short).write_bytes((out / short).read_bytes()[:-7])
    (out / gone).unlink()
    reported = problems(out, capsys)
    assert reported.keys() == {short, gone}
    assert reported[short][0] == f"has {size - 7} bytes, but its run record says {size}"
    assert reported[gone][0] == "is missing, although its run record names it"
    assert reported[gone][1].startswith("run localize again")


@pytest.mark.parametrize("column", ["image_id", "uri", "cams", "scores.list.element"])
def test_a_flipped_bit_in_a_part_without_record(out, capsys, column):
    """The page checksums of every column are checked, not only those of the ids."""
    key = f"{PARTS}/part-0002-000000.parquet"
    group = pq.ParquetFile(out / key).metadata.row_group(0)
    chunks = [group.column(n) for n in range(group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.startswith(column))
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    flip(out / key, start + chunk.total_compressed_size - 1)
    ((reported, (problem, advice)),) = problems(out, capsys).items()
    assert reported == key
    assert "CRC" in problem
    assert "its generation is unfinished" in advice


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.slice(1), "has 1 rows instead of the planned 2"),
        (lambda table: table.take([1, 0]), "holds other images than the planned ones"),
        (lambda table: table.replace_schema_metadata(None), "has metadata of another recipe"),
        (
            lambda table: table.replace_schema_metadata({**table.schema.metadata, b"plan_hash": b"0"}),
            "has metadata of another plan hash",
        ),
    ],
    ids=["a row less", "another order", "no metadata", "of another plan"],
)
def test_a_part_without_record_that_is_not_the_planned_one(out, capsys, change, problem):
    key = f"{PARTS}/part-0002-000000.parquet"
    pq.write_table(change(pq.read_table(out / key, partitioning=None)), out / key)
    assert problems(out, capsys)[key][0] == problem


def test_a_part_and_its_record_in_place_of_another(out, capsys):
    """The bytes agree with the record, but not with the plan."""
    first, second = (out / PARTS / f"part-0001-00000{n}.parquet" for n in (0, 1))
    record = json.loads((out / HOME / "run-0001.json").read_text())
    second.write_bytes(first.read_bytes())
    for name in ("bytes", "sha256"):
        record["parts"][1][name] = record["parts"][0][name]
    edit(out / HOME / "run-0001.json", parts=record["parts"])
    reported = problems(out, capsys)
    assert reported[f"{PARTS}/{second.name}"][0] == "has metadata of another shard"


def test_unexpected_files(out, capsys):
    source = out / PARTS / "part-0001-000000.parquet"
    strays = {
        f"{PARTS}/part-0001-000003.parquet",
        f"{PARTS}/part-0002-000002.parquet",
        f"{PARTS}/part-0003-000000.parquet",
        f"{PARTS}/backup/part-0001-000000.parquet",
        "predictions/recipe=r000000000000/part-0001-000000.parquet",
        "predictions/mine.parquet",
    }
    for key in strays:
        (out / key).parent.mkdir(exist_ok=True)
        (out / key).write_bytes(source.read_bytes())
    # A file that no reader takes for rows is ignored.
    (out / PARTS / "_SUCCESS").write_bytes(b"")
    reported = problems(out, capsys)
    assert reported.keys() == strays
    assert all(advice.startswith("move it out of predictions/") for _, advice in reported.values())
    assert cli.main(["verify", str(out), "--recipe", NAME]) == 5
    # The plan expects the part that is not committed yet.
    (out / PARTS / "part-0002-000001.parquet").write_bytes(source.read_bytes())
    assert (
        problems(out, capsys)[f"{PARTS}/part-0002-000001.parquet"][0] == "has 4 rows instead of the planned 2"
    )


def test_recipe_json(out, capsys):
    key = f"{HOME}/recipe.json"
    (out / key).write_text(json.dumps({"network": "tony"}))
    assert problems(out, capsys)[key][0].startswith("does not describe this recipe")
    (out / key).write_bytes(b'{"network')
    assert problems(out, capsys)[key][0].startswith("cannot be read (")
    (out / key).unlink()
    assert problems(out, capsys)[key][0] == "is missing"


def test_plan_files(out, capsys):
    changed, gone = f"{HOME}/plan-0001/0.parquet", f"{HOME}/plan-0002/0.parquet"
    flip(out / changed, 20)
    (out / gone).unlink()
    reported = problems(out, capsys)
    assert reported.keys() == {changed, gone}
    assert reported[changed][0] == "does not have the SHA-256 that its plan says"
    assert reported[gone][0] == "is missing"
    assert "without one, localize to another OUT" in reported[gone][1]


@pytest.mark.parametrize(
    "change",
    [
        {"items": 11},
        {"shards": 2},
        {"hash": "0" * 64},
        {"generation": 2},
        {"recipe": "r000000000000"},
        {"files": []},
        {"files": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_plans(out, capsys, change):
    key = f"{HOME}/plan-0001.json"
    edit(out / key, **change)
    assert problems(out, capsys).keys() == {key}, "parts are still compared with their record"
    flip(out / PARTS / "part-0001-000002.parquet", 50)
    assert problems(out, capsys).keys() == {key, f"{PARTS}/part-0001-000002.parquet"}


def test_a_missing_plan(out, capsys):
    key = f"{HOME}/plan-0001.json"
    (out / key).unlink()
    assert {key: wrong for key, (wrong, _) in problems(out, capsys).items()} == {key: "is missing"}
    # Without plan and record the expected parts are unknown, so none is called unexpected.
    (out / HOME / "run-0001.json").write_bytes(b"")
    assert problems(out, capsys).keys() == {key, f"{HOME}/run-0001.json"}


def without_last(parts):
    return parts[:-1]


def twice(parts):
    return [parts[0], *parts[:-1]]


def fewer_rows(parts):
    return [{**parts[0], "rows": 3}, *parts[1:]]


def fewer_images(parts):
    return [{**parts[0], "images": {"ok": 3}}, *parts[1:]]


def elsewhere(parts):
    return [{**parts[0], "key": "predictions/mine.parquet"}, *parts[1:]]


def nameless(parts):
    return [{"shard": 0}, *parts[1:]]


@pytest.mark.parametrize("change", [without_last, twice, fewer_rows, fewer_images, elsewhere, nameless])
def test_run_records(out, capsys, change):
    key = f"{HOME}/run-0001.json"
    edit(out / key, parts=change(json.loads((out / key).read_text())["parts"]))
    ((reported, (_, advice)),) = problems(out, capsys).items()
    assert reported == key
    assert "it is written again from the parts" in advice


@pytest.mark.parametrize(
    "change", [{"plan_hash": "0"}, {"generation": 2}, {"recipe": "r0"}, {"images": {"ok": 9}}], ids=str
)
def test_a_run_record_that_contradicts_its_generation(out, capsys, change):
    edit(out / HOME / "run-0001.json", **change)
    assert problems(out, capsys).keys() == {f"{HOME}/run-0001.json"}


def test_without_its_run_record_a_generation_is_unfinished(out, capsys):
    """As the advice says, localize completes it from the parts that are present."""
    (out / HOME / "run-0001.json").unlink()
    code, content, _ = verify(out, capsys)
    assert code == 0
    assert not content["recipes"][0]["generations"][0]["complete"]


def test_a_lost_part_whose_images_a_later_generation_holds(out, capsys, source, tiny_localizer):
    lost = f"{PARTS}/part-0001-000001.parquet"
    (out / lost).unlink()
    with pytest.raises(
        CorruptedError, match=f"^{lost} is missing, although its run record names it: run camworker"
    ):
        latest(str(out))
    ledger, items = open_output(out), photographs_of(source)
    complete_generation(ledger, tiny_localizer, items.slice(4, 3), generation=3)
    assert not planned_again(ledger, 1, 1)
    assert problems(out, capsys).keys() == {lost}
    complete_generation(ledger, tiny_localizer, items.slice(7, 2), generation=4)
    assert planned_again(ledger, 1, 1)
    code, content, text = verify(out, capsys)
    assert (code, content["recipes"][0]["replaced"]) == (0, [lost])
    assert "missing parts whose images later generations hold: 1" in text
    rows = latest(str(out))
    ids = rows["image_id"].to_pylist()
    assert sorted(i for i in ids if not i.startswith("new/")) == [f"{n:02d}.png" for n in range(10)]
    # A damaged plan does not show which images it holds, so the part stays lost.
    (out / HOME / "plan-0004/0.parquet").unlink()
    assert not planned_again(ledger, 1, 1)


def test_a_concurrent_run_is_not_reported_as_damage(out, tiny_localizer, source, monkeypatch):
    """Before every read of survey, another generation is planned, run and recorded."""
    ledger, items = open_output(out), photographs_of(source)
    generations, store_list, numbers = Ledger.generations, ledger.store.list, iter(range(3, 100))

    def commit_another():
        number = next(numbers)
        # New ids, because a part whose images a later generation holds would not be missed.
        ids = pa.array([f"{number}/{index}" for index in range(2)])
        new = items.slice(0, 2).set_column(0, items.schema.field("image_id"), ids)
        complete_generation(ledger, tiny_localizer, new, generation=number)

    def before(read):
        def read_later(*arguments):
            commit_another()
            return read(*arguments)

        return read_later

    monkeypatch.setattr(Ledger, "generations", before(generations))
    monkeypatch.setattr(ledger.store, "list", before(store_list))
    reported = survey(ledger)
    assert reported.problems == ()
    assert [wrong for _, wrong in check_parts(ledger, reported.parts) if wrong] == []
    assert next(numbers) > 5


def test_recipes(out, tmp_path, capsys):
    assert Ledger.recipes(open_output(out).store, damaged=True) == [NAME]
    other = Ledger(open_output(out).store, "rffffffffffff")
    other.write_recipe(make_recipe())
    assert problems(out, capsys).keys() == {"ledger/recipe=rffffffffffff/recipe.json"}
    assert cli.main(["verify", str(out), "--recipe", NAME]) == 0
    assert unexpected_recipes(other.store, [NAME]) == []
    assert cli.main(["verify", str(out), "--recipe", "r000000000000"]) == 2
    assert f"holds no recipe r000000000000: it holds {NAME}, rffffffffffff" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "nothing")]) == 2
