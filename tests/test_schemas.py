"""Stored rows: the schema that readers rely on, and values that are read back unchanged."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camworker.errors import STATUSES, CorruptedError, Failure
from camworker.inference.arrow import predictions_table
from camworker.inference.predictions import (
    TARGET_BOX_DTYPE,
    FailedPrediction,
    Prediction,
    Target,
)
from camworker.schemas import ITEMS, PLAN, PREDICTIONS, CamShape, cam_maps, refined_u8
from support import row_tables as rows

SHAPE, REFINED = CamShape(2, 4, 5), CamShape(1, 8, 10)


def make_items(count, schema=ITEMS):
    row = {"uri": "/in/x", "source_row": None, "identity": "1-2", "labels": [], "size": 1, "shard": 0}
    return pa.Table.from_pylist([{**row, "image_id": f"{n}.jpg"} for n in range(count)], schema)


def make_prediction(seed=0, boxes=(1, 2), targets=(), refined=1):
    """A prediction with this number of boxes per rank, and with targets of this number of boxes each."""
    random = np.random.default_rng(seed)

    def maps(*shape):
        return random.integers(0, 256, shape, np.uint8) if refined else None

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
                maps(8, 10),
            )
            for label, count in enumerate(targets)
        ),
        refined=maps(refined, 8, 10),
    )


FAILED = FailedPrediction.from_failure(Failure("decode_error", "PNG: truncated"))


def table_of(items, generation, predictions, shape):
    return predictions_table(items, generation, rows.columns_of(predictions, shape))


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
    box.append(("fallback", pa.bool_()))
    target = [("label", pa.int32()), ("score", pa.float32()), ("cam", pa.binary()), ("refined", pa.binary())]
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
        "cams": pa.binary(),
        "refined": pa.binary(),
        "targets": pa.list_(pa.struct([*target, ("boxes", pa.list_(pa.struct(box)))])),
    }
    assert dict(zip(PREDICTIONS.names, PREDICTIONS.types, strict=True)) == expected
    assert PREDICTIONS.names == list(expected)
    required = {field.name for field in PREDICTIONS if not field.nullable}
    assert required == {"image_id", "generation", "uri", "identity", "status"}


def test_plan_schema():
    assert PLAN.names == ["image_id", "uri", "source_row", "identity", "labels", "shard"]
    assert set(STATUSES) == {
        *("ok", "decode_error", "unsupported", "too_large", "read_error", "changed", "poison"),
        *("map_overflow", "removed"),
    }


@pytest.mark.parametrize("schema", [ITEMS, PLAN], ids=["items", "plan"])
def test_rows(schema):
    good = make_prediction(targets=(1, 2))
    table = through_parquet(table_of(make_items(2, schema), 3, [good, FAILED], SHAPE))
    assert table.schema.equals(PREDICTIONS)
    ok, failed = table.to_pylist()
    assert (ok["image_id"], ok["uri"], ok["source_row"], ok["identity"]) == ("0.jpg", "/in/x", None, "1-2")
    assert (ok["generation"], ok["status"], ok["error"]) == (3, "ok", None)
    assert (ok["width"], ok["height"]) == (640, 480)
    assert (ok["labels"], ok["names"], ok["scores"]) == ([7, 3], ["sieben", "drei"], [0.75, 0.125])
    assert ok["boxes"] == box_rows(good.boxes)
    assert [box["rank"] for box in ok["boxes"]] == [1, 2, 2]
    assert [target["label"] for target in ok["targets"]] == [0, 1]
    for stored, target in zip(ok["targets"], good.targets, strict=True):
        assert stored["cam"] == target.cam.tobytes()
        assert stored["refined"] == target.refined.tobytes()
        assert stored["boxes"] == box_rows(target.boxes)

    assert (failed["image_id"], failed["status"]) == ("1.jpg", "decode_error")
    assert failed["error"] == "PNG: truncated"
    for name in ("labels", "names", "scores", "boxes", "targets"):
        assert failed[name] == []
    assert failed["width"] is failed["height"] is None
    assert table["cams"].is_null().to_pylist() == [False, True]
    assert table["refined"].is_null().to_pylist() == [False, True]
    assert np.array_equal(cam_maps(table["cams"].slice(0, 1), SHAPE), good.cams[None])
    assert np.array_equal(refined_u8(table["refined"].slice(0, 1), REFINED), good.refined[None])


@pytest.mark.parametrize("targets", [[(), (1,), (), (2, 0, 1)], [(1,)] * 4, [()] * 4])
def test_each_row_keeps_its_own_targets(targets):
    predictions = [make_prediction(seed, targets=given) for seed, given in enumerate(targets)]
    table = through_parquet(table_of(make_items(4), 1, predictions, SHAPE))
    for row, prediction in zip(table["targets"].to_pylist(), predictions, strict=True):
        assert [box_rows(target.boxes) for target in prediction.targets] == [t["boxes"] for t in row]
        for name in ("cam", "refined"):
            assert [t[name] for t in row] == [getattr(t, name).tobytes() for t in prediction.targets]


def test_failures_between_rows_shift_nothing():
    predictions = [FAILED, make_prediction(1), FAILED, FAILED, make_prediction(2, boxes=(3, 0)), FAILED]
    table = through_parquet(table_of(make_items(6), 1, predictions, SHAPE))
    ok = table.filter(pc.equal(table["status"], "ok"))
    assert ok["image_id"].to_pylist() == ["1.jpg", "4.jpg"]
    expected = np.stack([predictions[1].cams, predictions[4].cams])
    assert np.array_equal(cam_maps(ok["cams"], SHAPE), expected)
    assert np.array_equal(refined_u8(ok["refined"], REFINED)[1], predictions[4].refined)
    assert ok["boxes"].to_pylist() == [box_rows(predictions[row].boxes) for row in (1, 4)]


def test_no_row_is_ok():
    table = through_parquet(table_of(make_items(3), 1, [FAILED] * 3, SHAPE))
    assert table.schema.equals(PREDICTIONS)
    assert table["cams"].null_count == table["refined"].null_count == 3
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
    stored = cam_maps(table["cams"], CamShape(2, 124, 256))
    assert np.array_equal(stored.view(np.uint16)[0], cams.view(np.uint16))
    target = cam_maps(table["targets"].combine_chunks().flatten().field("cam"), CamShape(1, 124, 256))
    assert np.array_equal(target.view(np.uint16)[0, 0], cams[0].view(np.uint16))


def rows_like(refined):
    """Rows of an output without refinement, or with refined maps of the best class or of both."""
    good = st.builds(
        make_prediction,
        seed=st.integers(0, 99),
        boxes=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        targets=st.lists(st.integers(0, 3), max_size=3),
        refined=st.just(refined),
    )
    return st.lists(st.one_of(st.just(FAILED), good), min_size=1, max_size=6)


@given(st.integers(0, 2).flatmap(rows_like))
def test_the_table_of_columns_is_that_of_the_rows(predictions):
    expected = rows.predictions_table(make_items(len(predictions)), 2, predictions)
    columns = rows.columns_of(predictions, SHAPE)
    table = predictions_table(make_items(len(predictions)), 2, columns)
    table.validate(full=True)
    assert table.equals(expected)
    assert columns.statuses == [row.status for row in predictions]
    # And the rows of the columns are the rows again.
    again = rows.predictions_table(make_items(len(predictions)), 2, columns.rows())
    assert again.equals(expected)


@pytest.mark.parametrize("status", ["ok", "broken", ""])
def test_a_failure_needs_a_known_status(status):
    with pytest.raises(ValueError, match="cannot have the status"):
        Failure(status, "reason")


@pytest.mark.parametrize("chunks", [1, 3])
def test_maps_of_slices_and_chunks(chunks):
    predictions = [make_prediction(seed) for seed in range(6)]
    column = table_of(make_items(6), 1, predictions, SHAPE)["cams"].slice(1)
    column = pa.chunked_array([chunk for n in range(chunks) for chunk in column.chunks])
    expected = np.stack([row.cams for row in predictions[1:]] * chunks)
    assert np.array_equal(cam_maps(column, SHAPE), expected)
    assert cam_maps(column.slice(0, 0), SHAPE).shape == (0, 2, 4, 5)
    assert cam_maps(pa.array([], pa.binary()), SHAPE).dtype == np.float16


@pytest.mark.parametrize("values", [[None, b"1234"], [b"123"], [b"12345678"], [b"1234", b"12", b"123456"]])
def test_maps_that_are_null_or_of_another_size_are_corrupted(values):
    with pytest.raises(CorruptedError, match="maps of 2 values"):
        cam_maps(pa.array(values, pa.binary()), CamShape(1, 2, 1))


def test_the_shape_in_the_metadata():
    assert CamShape(5, 7, 9).to_json() == "[5, 7, 9]"
    assert CamShape.from_json(b"[5, 7, 9]") == CamShape(5, 7, 9)
    assert CamShape.from_json("null") is None


@pytest.mark.parametrize("text", ["", "[1, 2]", "[1, 2, 0]", "[1, 2, 2.5]", "5", "{}", '"null"'])
def test_metadata_that_are_no_shape(text):
    with pytest.raises(CorruptedError, match="not the shape"):
        CamShape.from_json(text)
