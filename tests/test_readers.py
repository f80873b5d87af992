"""Other libraries read parts: maps are bytes, whose shape is in the metadata of the file."""

import ast
import io
import json

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from camworker.boxes.refine import decode_refined
from camworker.dataset import latest
from camworker.inputs.sources import open_source
from camworker.ledger.ledger import Ledger
from camworker.schemas import CamShape, cam_maps
from camworker.storage.local import LocalStore
from support.export_rows import commit, seen
from support.factories import TINY_CLASSES, photograph, run_generation
from support.infra_files import code_blocks
from support.paths import ROOT
from support.prediction_rows import WHOLE, broken, part, row
from support.recipes import make_recipe

RECIPE = "r0123456789ab"


@pytest.fixture
def written(tmp_path, folder, tiny_localizer):
    """An output of three parts with good rows, failed rows and targets, and its rows as a table."""
    out = str(tmp_path / "out")
    (folder / "03.png").write_bytes(photograph(3)[:50])
    (folder / "labels.csv").write_text("image_id,label\n00.png,dog\n05.png,bird\n05.png,cat\n")
    labels = str(folder / "labels.csv")
    items = open_source(str(folder), TINY_CLASSES, image_labels=labels).items
    (folder / "07.png").unlink()
    run_generation(Ledger(LocalStore(out), RECIPE), tiny_localizer, items, size=4)
    table = latest(out)
    statuses = ["ok"] * 11
    statuses[3], statuses[7] = "decode_error", "read_error"
    assert table["status"].to_pylist() == statuses
    return f"{out}/predictions/**/*.parquet", table


def parts_of(pattern):
    root = pattern.partition("/**")[0]
    return pyarrow.dataset.dataset(root, partitioning="hive")


def boxes_of(table):
    return [[tuple(box.values()) for box in row] for row in table["boxes"].to_pylist()]


def good_cams(table):
    return cam_maps(table.filter(pc.equal(table["status"], "ok"))["cams"], CamShape(3, 8, 4))


def test_pyarrow(written):
    pattern, expected = written
    dataset = parts_of(pattern)
    table = dataset.to_table().sort_by("image_id")
    assert table["recipe"].unique().to_pylist() == [RECIPE]
    assert table["status"].equals(expected["status"])
    assert boxes_of(table) == boxes_of(expected)
    cams = good_cams(table)
    assert cams.shape == (9, 3, 8, 4)
    assert cams.dtype == np.float16
    assert np.array_equal(cams, good_cams(expected))
    assert table["targets"].equals(expected["targets"])
    assert [len(row) for row in table["targets"].to_pylist()] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]


def test_polars(written):
    pattern, expected = written
    frame = pl.read_parquet(pattern).sort("image_id")
    assert frame["status"].to_list() == expected["status"].to_pylist()
    assert [[tuple(box.values()) for box in row] for row in frame["boxes"].to_list()] == boxes_of(expected)
    good = frame.filter(pl.col("status") == "ok")["cams"]
    cams = np.frombuffer(b"".join(good), "<f2").reshape(-1, *shape_in_the_file(pattern))
    assert np.array_equal(cams, good_cams(expected))
    assert frame["cams"].is_null().to_list() == expected["cams"].is_null().to_pylist()
    assert frame["targets"].to_list()[5] == expected["targets"][5].as_py()


def shape_in_the_file(pattern):
    return json.loads(parts_of(pattern).schema.metadata[b"cam_shape"])


def test_pandas(written):
    pattern, expected = written
    frame = pd.read_parquet(pattern.partition("/**")[0]).sort_values("image_id")
    assert frame["status"].tolist() == expected["status"].to_pylist()
    assert [[tuple(box.values()) for box in row] for row in frame["boxes"]] == boxes_of(expected)
    good = frame[frame["status"] == "ok"]["cams"]
    cams = np.frombuffer(b"".join(good), "<f2").reshape(-1, *shape_in_the_file(pattern))
    assert np.array_equal(cams, good_cams(expected))
    assert frame["cams"].isna().tolist() == expected["cams"].is_null().to_pylist()


def test_duckdb(written):
    pattern, expected = written
    rows = duckdb.sql(
        f"select status, boxes, cams, recipe from read_parquet('{pattern}') order by image_id"
    ).fetchall()
    statuses, boxes, flat, recipes = zip(*rows, strict=True)
    assert set(recipes) == {RECIPE}
    assert list(statuses) == expected["status"].to_pylist()
    assert [[tuple(box.values()) for box in row] for row in boxes] == boxes_of(expected)
    cams = np.frombuffer(b"".join(row for row in flat if row is not None), "<f2")
    assert np.array_equal(cams.reshape(-1, *shape_in_the_file(pattern)), good_cams(expected))
    assert [row is None for row in flat] == expected["cams"].is_null().to_pylist()


def test_the_documented_lines_of_every_reader(tmp_path, monkeypatch):
    """The Python examples in the documentation give the same maps, whichever library reads them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    ledger = Ledger(LocalStore("out"), RECIPE)
    ledger.write_recipe(make_recipe())
    rng = np.random.default_rng(0)
    cams = rng.random((6, 2, 4, 4)).astype(np.float16)
    refined = rng.integers(0, 256, (6, 1, 8, 8), np.uint8)
    for shard in range(3):
        images = {
            f"{n}": seen((0, 0.9, WHOLE), cams=cams[n], refined=refined[n])
            for n in (2 * shard, 2 * shard + 1)
        }
        commit(ledger, images | {f"bad {shard}": broken("bad")[1]}, shard=shard)
    every_block = code_blocks(ROOT / "jobs/README.md", "python")
    blocks = [block for block in every_block if "out/predictions" in block or "refined_shape" in block]
    names, readers = {}, 0
    for statement in ast.parse("\n".join(blocks)).body:
        exec(compile(ast.Module([statement], []), "README.md", "exec"), names)
        if ast.unparse(statement).startswith("cams = "):
            readers += 1
            assert {one.tobytes() for one in names["cams"]} == {one.tobytes() for one in cams}
            assert names["cams"].shape == cams.shape
    assert readers == 5
    assert np.allclose(names["refined"], decode_refined(refined), rtol=1e-6)


DUCKDB_LATEST = """
select * from 'out/predictions/**/*.parquet'
qualify generation = max(generation) over (partition by recipe, image_id) and status <> 'removed'
"""
OTHER_RECIPE = "rba9876543210"
LATEST = {("a", 1), ("c", 2), ("d", 3), ("e", 3)}


@pytest.fixture
def generations(tmp_path, monkeypatch):
    """Three generations that change, remove and bring back images, and one generation of another recipe."""
    monkeypatch.chdir(tmp_path)
    one = [(0, WHOLE)]
    for recipe, generation, rows in (
        (RECIPE, 1, [row(image_id, one) for image_id in "abcd"]),
        (RECIPE, 2, [broken("b", "removed"), broken("c"), broken("d", "removed")]),
        (RECIPE, 3, [row("d", one), row("e", one)]),
        (OTHER_RECIPE, 1, [row("b", one)]),
    ):
        file = io.BytesIO()
        pq.write_table(part(*rows, generation=generation), file)
        ledger = Ledger(LocalStore("out"), recipe)
        ledger.write_recipe(make_recipe())
        ledger.store.create(ledger.layout.part_key(generation, 0), file.getvalue())
    table = latest("out", RECIPE)
    assert set(zip(*table.select(["image_id", "generation"]).to_pydict().values(), strict=True)) == LATEST


@pytest.mark.usefixtures("generations")
def test_latest_by_duckdb():
    rows = duckdb.sql(DUCKDB_LATEST).select("recipe, image_id, generation").fetchall()
    assert len(rows) == 5
    assert set(rows) == {(RECIPE, *row) for row in LATEST} | {(OTHER_RECIPE, "b", 1)}


# The optimizer must not filter by status before the last generation is found, not even lazily.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("generations")
@pytest.mark.parametrize("read", [pl.read_parquet, pl.scan_parquet])
def test_latest_by_polars(read):
    frame = (
        read(f"out/predictions/recipe={RECIPE}/*.parquet")
        .filter(pl.col("generation") == pl.max("generation").over("image_id"))
        .filter(pl.col("status") != "removed")
    )
    rows = frame.lazy().select("image_id", "generation").collect().rows()
    assert len(rows) == 4
    assert set(rows) == LATEST
