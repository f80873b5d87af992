"""One shard: a row per item, whatever the item is, and the metadata of its part."""

import json
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from camworker.boxes.rules import boxes_from_cam
from camworker.frame import Frame
from camworker.inference.pipeline import localize_items
from camworker.inputs import ReadPolicy
from camworker.inputs.sources import open_source
from camworker.ledger.plan import write_generation
from camworker.schemas import ITEMS, PREDICTIONS, cam_maps
from support.factories import TINY_CLASSES, photograph, photographs_of, plan_of, read, run

RECIPE = "r0123456789ab"


def test_an_item_without_identity_is_removed_and_not_read(ledger, folder, tiny_localizer):
    items = photographs_of(folder)
    gone = pa.array([None if n in (2, 5, 10) else i for n, i in enumerate(items["identity"].to_pylist())])
    place = ITEMS.get_field_index("identity")
    plan = write_generation(ledger, 1, items.set_column(place, ITEMS.field(place), gone), 100, ReadPolicy())
    part = run(ledger, plan, tiny_localizer).part
    assert part.images == {"ok": 8, "removed": 3}
    rows = {row["image_id"]: row for row in read(ledger).to_pylist()}
    row = rows["05.png"]
    assert (row["status"], row["identity"], row["uri"]) == ("removed", "", str(folder / "05.png"))
    assert row["error"] == "it is no longer listed"
    assert row["labels"] == row["boxes"] == row["targets"] == []


@pytest.mark.parametrize("size", [3, 4, 100])
def test_a_row_for_every_item(ledger, folder, tiny_localizer, size):
    (folder / "01.png").write_bytes(photograph(1)[:100])
    (folder / "02.png").write_bytes(b"")
    (folder / "03.png").write_bytes(b"<html>not found</html>")
    plan = plan_of(ledger, folder, size)
    (folder / "04.png").unlink()
    (folder / "05.png").write_bytes(photograph(0, width=99))
    expected = {f"{n:02d}.png": "ok" for n in range(11)} | {
        "01.png": "decode_error",
        "02.png": "decode_error",
        "03.png": "unsupported",
        "04.png": "read_error",
        "05.png": "changed",
    }
    told = []
    parts = [run(ledger, plan, tiny_localizer, n, on_batch=told.extend).part for n in range(plan.shards)]
    table = pa.concat_tables([read(ledger, shard) for shard in range(plan.shards)])
    statuses = table["status"].to_pylist()
    assert list(zip(table["image_id"].to_pylist(), statuses, strict=True)) == list(expected.items())
    assert told == statuses
    assert sum((Counter(part.images) for part in parts), Counter()) == Counter(expected.values())
    assert table["error"].is_null().to_pylist() == [status == "ok" for status in statuses]
    assert set(table["generation"].to_pylist()) == {1}
    assert list(ledger.parts()) == [(1, shard) for shard in range(plan.shards)]


def test_rows_are_the_predictions_of_the_localizer(ledger, folder, tiny_localizer):
    expected = tiny_localizer.localize([path.read_bytes() for path in sorted(folder.iterdir())])
    run(ledger, plan_of(ledger, folder), tiny_localizer)
    table = read(ledger)
    assert table.schema.equals(PREDICTIONS)
    cams = cam_maps(table["cams"], tiny_localizer.cam_shape)
    assert cams.shape == (11, 3, 8, 4)
    assert np.array_equal(cams, np.stack([row.cams for row in expected]))
    for row, prediction in zip(table.to_pylist(), expected, strict=True):
        assert (row["width"], row["height"]) == (prediction.width, prediction.height)
        assert (row["labels"], tuple(row["names"])) == (prediction.labels.tolist(), prediction.names)
        assert row["scores"] == prediction.scores.tolist()
        assert [tuple(box.values()) for box in row["boxes"]] == prediction.boxes.tolist()


def test_rows_keep_their_order_when_reading_does_not(folder, tiny_localizer, monkeypatch):
    prepare, finished = type(tiny_localizer).preprocess, []

    def slow_for_the_first(data):
        time.sleep(0.1 if data == photograph(0, width=20) else 0)
        finished.append(data)
        return prepare(tiny_localizer, data)

    monkeypatch.setattr(tiny_localizer, "preprocess", slow_for_the_first)
    batches = list(localize_items(photographs_of(folder), tiny_localizer, ReadPolicy(), decode_threads=8))
    assert [rows.num_rows for rows, _ in batches] == [4, 4, 3]
    assert finished.index(photograph(0, width=20)) > 0
    got = [
        (i, row.width)
        for rows, predictions in batches
        for i, row in zip(rows["image_id"].to_pylist(), predictions.rows(), strict=True)
    ]
    assert got == [(f"{n:02d}.png", 20 + n) for n in range(11)]


def test_prefetching_is_bounded_by_batches(folder, tiny_localizer, monkeypatch):
    for n in range(11, 40):
        (folder / f"{n:02d}.png").write_bytes(photograph(n))
    prepare, forward = type(tiny_localizer).preprocess, type(tiny_localizer).forward
    read, used, most = [], [], []

    def counted_prepare(data):
        read.append(data)
        return prepare(tiny_localizer, data)

    def counted_forward(batch, labels):
        most.append(len(read) - len(used))
        used.extend(batch)
        return forward(tiny_localizer, batch, labels)

    monkeypatch.setattr(tiny_localizer, "preprocess", counted_prepare)
    monkeypatch.setattr(tiny_localizer, "forward", counted_forward)
    for _ in localize_items(photographs_of(folder), tiny_localizer, ReadPolicy(), decode_threads=4):
        time.sleep(0.01)  # a slow consumer, so that readers could run away
    assert len(used) == 40
    assert 4 <= max(most) <= 5 * 4  # three batches ahead, and two on their way to the network


def test_known_labels_become_targets(ledger, folder, tiny_localizer, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,label\n00.png,dog\n02.png,bird\n02.png,cat\n")
    items = open_source(str(folder), TINY_CLASSES, image_labels=str(labels)).items
    run(ledger, write_generation(ledger, 1, items, 100, ReadPolicy()), tiny_localizer)
    table = read(ledger)
    targets = table["targets"].to_pylist()
    assert [[target["label"] for target in row] for row in targets[:4]] == [[1], [], [0, 2], []]
    # All three classes are in the top-k: what is said of a known one is the same beside it.
    cams = cam_maps(table["cams"], tiny_localizer.cam_shape)
    for row in (0, 2):
        for target in targets[row]:
            place = table["labels"][row].as_py().index(target["label"])
            assert target["cam"] == cams[row, place].tobytes()
            assert target["score"] == table["scores"][row].as_py()[place]
            box = {**table["boxes"][row].as_py()[place]}
            assert box.pop("rank") == place + 1
            assert target["boxes"] == [box]


def test_metadata(ledger, folder, tiny_localizer):
    plan = plan_of(ledger, folder, size=6)
    run(ledger, plan, tiny_localizer, shard=1, about={"device": "cpu", "versions": {"torch": "2"}})
    table = read(ledger, 1)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    named = {name: metadata.pop(name) for name in ("schema_version", "recipe", "generation", "shard")}
    assert named == {"schema_version": "2", "recipe": RECIPE, "generation": "1", "shard": "1"}
    assert metadata.pop("plan_hash") == plan.hash
    content = {name: json.loads(value) for name, value in metadata.items()}
    assert content == {
        "cam_shape": [3, 8, 4],
        "refined_shape": None,
        "frame": {
            "resize": "squash",
            "input_size": 32,
            "views": "single",
            "size": 32,
            "upsampling": "bilinear",
            "align_corners": False,
        },
        "resolved": {"device": "cpu", "versions": {"torch": "2"}},
    }
    # A reader can make the boxes again from what the file says.
    for row in table.to_pylist():
        cams = np.frombuffer(row["cams"], "<f2").reshape(content["cam_shape"])
        way = Frame(row["width"], row["height"], content["frame"]["size"], content["frame"]["resize"])
        boxes = np.concatenate([boxes_from_cam(cam, way) for cam in cams])
        kept = [[box[c] for c in ("xmin", "ymin", "xmax", "ymax")] for box in row["boxes"]]
        assert boxes.tolist() == kept
