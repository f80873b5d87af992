"""Stored rows: the schema that readers rely on, and values that are read back unchanged."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.errors import STATUSES, Failure, MapOverflowError
from camworker.inference.arrow import predictions_table
from camworker.inference.predictions import (
    TARGET_BOX_DTYPE,
    FailedPrediction,
    Prediction,
    Target,
    to_float16,
)
from camworker.schemas import ITEMS, PLAN, CamShape, predictions_schema
from support import row_tables as rows

SHAPE = CamShape(2, 4, 5)


def make_items(count, schema=ITEMS):
    row = {"uri": "/in/x", "source_row": None, "identity": "1-2", "labels": [], "size": 1, "shard": 0}
    return pa.Table.from_pylist([{**row, "image_id": f"{n}.jpg"} for n in range(count)], schema)


def make_prediction(seed=0, boxes=(1, 2), targets=()):
    """A prediction with this number of boxes per rank, and with targets of this number of boxes each."""
    random = np.random.default_rng(seed)
    labels = np.array([7, 3], np.int32)
    made = [
        rows.make_boxes(label, score, random.random((count, 4), np.float32), rank)
        for rank, (label, score, count) in enumerate(zip(labels, (0.75, 0.125), boxes, strict=True), 1)
    ]
    return Prediction(
        width=640,
        height=480,
        labels=labels,
        names=("sieben", "drei"),
        scores=np.array([0.75, 0.125], np.float32),
        cams=random.normal(size=(2, 4, 5)).astype(np.float16),
        boxes=np.concatenate(made),
        targets=tuple(
            Target(
                label,
                0.5,
                random.normal(size=(4, 5)).astype(np.float16),
                rows.make_boxes(label, 0.5, random.random((count, 4), np.float32), 1)[
                    list(TARGET_BOX_DTYPE.names)
                ].astype(TARGET_BOX_DTYPE),
            )
            for label, count in enumerate(targets)
        ),
    )


FAILED = FailedPrediction.from_failure(Failure("decode_error", "PNG: truncated"))


def table_of(items, generation, predictions, shape):
    return predictions_table(items, generation, rows.columns_of(predictions, shape), shape)


def through_parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pq.read_table(buffer)


def box_rows(boxes):
    return [dict(zip(boxes.dtype.names, box.tolist(), strict=True)) for box in boxes]


def test_schema():
    """The contract of the output: a change breaks readers that are not part of this repository."""
    box = [("label", pa.int32()), ("score", pa.float32())]
    box += [(corner, pa.float32()) for corner in ("xmin", "ymin", "xmax", "ymax")]
    target = [("label", pa.int32()), ("score", pa.float32()), ("cam", pa.list_(pa.float16()))]
    expected = {
        "image_id": pa.string(),
        "generation": pa.int32(),
        "uri": pa.string(),
        "source_row": pa.int64(),
        "identity": pa.string(),
        "status": pa.string(),
        "error": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "labels": pa.list_(pa.int32()),
        "names": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "boxes": pa.list_(pa.struct([("rank", pa.int8()), *box])),
        "cams": pa.fixed_shape_tensor(pa.float16(), (5, 7, 9)),
        "targets": pa.list_(pa.struct([*target, ("boxes", pa.list_(pa.struct(box)))])),
    }
    schema = predictions_schema(CamShape(5, 7, 9))
    assert dict(zip(schema.names, schema.types, strict=True)) == expected
    assert schema.names == list(expected)
    required = {field.name for field in schema if not field.nullable}
    assert required == {"image_id", "generation", "uri", "identity", "status"}


def test_plan_schema():
    assert PLAN.names == ["image_id", "uri", "source_row", "identity", "labels", "shard"]
    assert set(STATUSES) == {
        *("ok", "decode_error", "unsupported", "too_large", "read_error", "changed", "poison", "removed")
    }


@pytest.mark.parametrize("schema", [ITEMS, PLAN], ids=["items", "plan"])
def test_rows(schema):
    good = make_prediction(targets=(1, 2))
    table = through_parquet(table_of(make_items(2, schema), 3, [good, FAILED], SHAPE))
    assert table.schema.equals(predictions_schema(SHAPE))
    ok, failed = table.drop_columns(["cams"]).to_pylist()
    assert (ok["image_id"], ok["uri"], ok["source_row"], ok["identity"]) == ("0.jpg", "/in/x", None, "1-2")
    assert (ok["generation"], ok["status"], ok["error"]) == (3, "ok", None)
    assert (ok["width"], ok["height"]) == (640, 480)
    assert (ok["labels"], ok["names"], ok["scores"]) == ([7, 3], ["sieben", "drei"], [0.75, 0.125])
    assert ok["boxes"] == box_rows(good.boxes)
    assert [box["rank"] for box in ok["boxes"]] == [1, 2, 2]
    assert [target["label"] for target in ok["targets"]] == [0, 1]
    for stored, target in zip(ok["targets"], good.targets, strict=True):
        assert np.array_equal(np.array(stored["cam"], np.float16).reshape(4, 5), target.cam)
        assert stored["boxes"] == box_rows(target.boxes)

    assert (failed["image_id"], failed["status"]) == ("1.jpg", "decode_error")
    assert failed["error"] == "PNG: truncated"
    for name in ("labels", "names", "scores", "boxes", "targets"):
        assert failed[name] == []
    assert failed["width"] is failed["height"] is None
    assert table["cams"].is_null().to_pylist() == [False, True]
    kept = table.slice(0, 1)["cams"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(kept, good.cams[None])


@pytest.mark.parametrize("targets", [[(), (1,), (), (2, 0, 1)], [(1,)] * 4, [()] * 4])
def test_each_row_keeps_its_own_targets(targets):
    predictions = [make_prediction(seed, targets=given) for seed, given in enumerate(targets)]
    table = through_parquet(table_of(make_items(4), 1, predictions, SHAPE))
    for row, prediction in zip(table["targets"].to_pylist(), predictions, strict=True):
        assert [box_rows(target.boxes) for target in prediction.targets] == [t["boxes"] for t in row]
        cams = [np.array(target["cam"], np.float16) for target in row]
        assert all(map(np.array_equal, cams, (t.cam.ravel() for t in prediction.targets)))


def test_failures_between_rows_shift_nothing():
    predictions = [FAILED, make_prediction(1), FAILED, FAILED, make_prediction(2, boxes=(3, 0)), FAILED]
    table = through_parquet(table_of(make_items(6), 1, predictions, SHAPE))
    ok = table.filter(pc.equal(table["status"], "ok"))
    assert ok["image_id"].to_pylist() == ["1.jpg", "4.jpg"]
    expected = np.stack([predictions[1].cams, predictions[4].cams])
    assert np.array_equal(ok["cams"].combine_chunks().to_numpy_ndarray(), expected)
    assert ok["boxes"].to_pylist() == [box_rows(predictions[row].boxes) for row in (1, 4)]


def test_no_row_is_ok():
    table = through_parquet(table_of(make_items(3), 1, [FAILED] * 3, SHAPE))
    assert table.schema.equals(predictions_schema(SHAPE))
    assert table["cams"].null_count == 3
    assert table["targets"].to_pylist() == table["boxes"].to_pylist() == [[], [], []]


def test_a_slice_of_items_has_its_own_ids():
    table = table_of(make_items(5).slice(3, 2), 1, [make_prediction()] * 2, SHAPE)
    assert table["image_id"].to_pylist() == ["3.jpg", "4.jpg"]


def test_predictions_and_items_have_to_be_equally_many():
    with pytest.raises(ValueError, match="1 predictions for 2 items"):
        table_of(make_items(2), 1, [FAILED], SHAPE)


def test_every_float16_is_read_back_bit_for_bit():
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))]  # subnormals and -0.0 among them
    cams = finite.view(np.float16).reshape(2, 124, 256)
    row = make_prediction()
    prediction = Prediction(
        **{name: getattr(row, name) for name in ("width", "height", "labels", "names", "scores", "boxes")},
        cams=cams,
        targets=(Target(0, 1.0, cams[0], np.empty(0, TARGET_BOX_DTYPE)),),
    )
    table = through_parquet(table_of(make_items(1), 1, [prediction], CamShape(2, 124, 256)))
    stored = table["cams"].combine_chunks().to_numpy_ndarray()
    assert np.array_equal(stored.view(np.uint16)[0], cams.view(np.uint16))
    target = table["targets"].combine_chunks().flatten().field("cam").flatten().to_numpy()
    assert np.array_equal(target.view(np.uint16), cams[0].ravel().view(np.uint16))


def test_to_float16_rounds_to_nearest():
    values = np.array([1 / 3, -2049.0, 65519.0, -0.0], np.float32)
    expected = np.array([0x3555, 0xE800, 0x7BFF, 0x8000], np.uint16)
    assert to_float16(values).view(np.uint16).tolist() == expected.tolist()


@pytest.mark.parametrize("value", [65520.0, -1e30, np.inf, np.nan])
def test_to_float16_never_writes_an_infinity(value):
    with pytest.raises(MapOverflowError):
        to_float16(np.array([[0.0, value]], np.float32))


ROW = st.one_of(
    st.just(FAILED),
    st.builds(
        make_prediction,
        seed=st.integers(0, 99),
        boxes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        targets=st.lists(st.integers(0, 3), max_size=3),
    ),
)


@given(st.lists(ROW, min_size=1, max_size=6))
def test_the_table_of_columns_is_that_of_the_rows(predictions):
    expected = rows.predictions_table(make_items(len(predictions)), 2, predictions, SHAPE)
    columns = rows.columns_of(predictions, SHAPE)
    table = predictions_table(make_items(len(predictions)), 2, columns, SHAPE)
    table.validate(full=True)
    assert table.equals(expected)
    assert columns.statuses == [row.status for row in predictions]
    # And the rows of the columns are the rows again.
    again = rows.predictions_table(make_items(len(predictions)), 2, columns.rows(), SHAPE)
    assert again.equals(expected)


@pytest.mark.parametrize("status", ["ok", "broken", ""])
def test_a_failure_needs_a_known_status(status):
    with pytest.raises(ValueError, match="cannot have the status"):
        Failure(status, "reason")
