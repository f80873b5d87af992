"""Outputs with refined maps and without: latest, compact, verify; outputs of another schema version."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.dataset import latest
from camworker.errors import CorruptedError, UsageError
from camworker.inference.localizer import Localizer
from camworker.inference.shard import run_shard
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import PREDICTIONS, CamShape, cam_maps, refined_u8
from jobs import cli
from support.factories import photographs_of
from support.recorded_generation import complete_generation, open_output, record_run
from support.tapped_network import discs, tapped_package

REFINED = {
    "raw": ({"refine": "none"}, None),
    "best": ({"refine": "ridge"}, CamShape(1, 16, 16)),
    "all": ({"refine": "ridge", "refined": "all"}, CamShape(3, 16, 16)),
}


@pytest.fixture(scope="module")
def package():
    return tapped_package()


@pytest.fixture(params=REFINED)
def made(request, tmp_path, package):
    """An output of two generations, its localizer and the shape of its refined maps."""
    options, shape = REFINED[request.param]
    localizer = Localizer(package, device="cpu", precision="float32", batch_size=4, top_k=3, **options)
    folder = discs(tmp_path / "in", 7)
    (folder / "0003.png").write_bytes(b"no image")
    ledger = open_output(tmp_path / "out")
    items = photographs_of(folder)
    place, labels = items.schema.get_field_index("labels"), [[n, n + 1] if n % 2 else [] for n in range(7)]
    items = items.set_column(place, items.schema.field("labels"), pa.array(labels, pa.list_(pa.int32())))
    complete_generation(ledger, localizer, items.slice(0, 5), size=3)
    plan = complete_generation(ledger, localizer, items.slice(4, 3), generation=2, size=2, shards=[0])
    return tmp_path / "out", ledger, plan, localizer, shape


def finish(ledger, plan, localizer):
    """Resume: the part that is there is adopted, the other one is computed."""
    options = {"decode_threads": 2, "runtime_info": {}, "on_batch": lambda statuses: None}
    results = [run_shard(ledger, plan, shard, localizer, **options) for shard in range(plan.shards)]
    assert [result.seconds > 0 for result in results] == [False, True]
    record_run(ledger, plan, [result.part for result in results])


def test_the_rows_survive_resuming_compacting_and_verifying(made, tmp_path, capsys):
    out, ledger, plan, localizer, shape = made
    finish(ledger, plan, localizer)
    snapshot = Snapshot.load(ledger)
    assert (snapshot.cam_shape(), snapshot.refined_shape()) == (CamShape(3, 4, 4), shape)
    rows = latest(str(out)).sort_by("image_id")
    assert rows["status"].to_pylist() == ["ok"] * 3 + ["unsupported"] + ["ok"] * 3
    assert rows["refined"].is_null().to_pylist() == [shape is None or n == 3 for n in range(7)]
    images = [path.read_bytes() for path in sorted((tmp_path / "in").iterdir())]
    labels = [[n, n + 1] if n % 2 else [] for n in range(7)]
    expected = [row for row in localizer.localize(images, labels) if row.status == "ok"]
    good = rows.filter(rows["cams"].is_valid())
    assert cam_maps(good["cams"], snapshot.cam_shape()).tolist() == [row.cams.tolist() for row in expected]
    targets = [target for row in good["targets"].to_pylist() for target in row]
    wanted = [target for row in expected for target in row.targets]
    assert [target["cam"] for target in targets] == [target.cam.tobytes() for target in wanted]
    if shape is None:
        assert all(target["refined"] is None for target in targets)
    else:
        stored = refined_u8(good["refined"], shape)
        assert stored.tolist() == [row.refined.tolist() for row in expected]
        assert [target["refined"] for target in targets] == [target.refined.tobytes() for target in wanted]

    assert cli.main(["verify", str(out)]) == 0
    assert cli.main(["compact", str(out), "--to", str(tmp_path / "rows")]) == 0
    compacted = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "rows").iterdir())])
    assert compacted.replace_schema_metadata(None).sort_by("image_id").equals(rows)
    metadata = compacted.schema.metadata
    assert CamShape.from_json(metadata[b"refined_shape"]) == shape
    assert json.loads(metadata[b"frame"])["size"] == 128
    capsys.readouterr()


def other_version(data: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    buffer = io.BytesIO()
    metadata = {**(table.schema.metadata or {}), b"schema_version": b"1"}
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("command", ["preview", "compact", "export"])
def test_an_output_of_another_schema_version_is_refused_in_a_line(
    tmp_path, folder, tiny_localizer, capsys, command
):
    ledger = open_output(tmp_path / "out")
    complete_generation(ledger, tiny_localizer, photographs_of(folder), size=20)
    for path in (tmp_path / "out").rglob("*.parquet"):
        if path.name.startswith("part-"):
            path.write_bytes(other_version(path.read_bytes()))
    for path in (tmp_path / "out").rglob("run-*.json"):
        path.unlink()
    recipe = next((tmp_path / "out").rglob("recipe.json"))
    recipe.write_text(recipe.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(UsageError, match="schema version 1, and this version of camworker reads 2"):
        latest(str(tmp_path / "out"))
    options = {"preview": [], "compact": [], "export": ["--format", "coco"]}[command]
    assert cli.main([command, str(tmp_path / "out"), "--to", str(tmp_path / "to"), *options]) == 2
    message = capsys.readouterr().err.strip()
    assert "schema version" in message
    assert "\n" not in message


def test_a_part_without_a_schema_version_is_damaged(tmp_path, folder, tiny_localizer):
    ledger = open_output(tmp_path / "out")
    complete_generation(ledger, tiny_localizer, photographs_of(folder), size=20)
    (part,) = (tmp_path / "out" / "predictions").rglob("*.parquet")
    pq.write_table(PREDICTIONS.empty_table(), part)
    for path in (tmp_path / "out").rglob("run-*.json"):
        path.unlink()
    with pytest.raises(CorruptedError, match="run camworker verify OUT"):
        latest(str(tmp_path / "out"))
