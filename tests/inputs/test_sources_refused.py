"""Inputs that cannot be planned are refused with a one-line message before any image is read."""

import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camworker.errors import UsageError
from support.factories import items_of, write_table


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"id": [1, 2, 1], "image": [b""] * 3}, {}, "1 image ids occur more than once.*'1'"),
        ({"uri": ["a", "b", "a"]}, {}, "more than once"),
        ({"id": [1], "picture": [b""]}, {}, "there is no 'image'; it has id, picture"),
        ({"image": [b""]}, {}, "no column 'image_id' or 'id': name the column"),
        ({"id": [1], "image": [b""]}, {"id_column": "key"}, "no column 'key'"),
        ({"id": [1], "image": [b""]}, {"identity_column": "etag"}, "no column 'etag'"),
        ({"id": [1, None], "image": [b"", b""]}, {}, "'id' is empty in row 2"),
        ({"uri": ["a", None]}, {}, "'uri' is empty in row 2"),
        ({"id": [1], "image": [b""], "label": ["cow"]}, {}, "'cow'"),
        ({"id": [1], "image": [b""], "label": ["bird"]}, {}, "two classes.*'bird'"),
    ],
)
def test_tables_that_cannot_be_planned_are_refused(tmp_path, columns, options, message):
    with pytest.raises(UsageError, match=message):
        items_of(write_table(tmp_path / "t.parquet", **columns), **options)


def test_duplicates_are_found_across_files(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", id=[1], image=[b""])
    with pytest.raises(UsageError, match="more than once"):
        items_of(str(tmp_path))


@pytest.mark.parametrize("name", ["t.parquet", "t.csv"])
def test_file_that_is_not_a_table_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be read as"):
        items_of(str(tmp_path / name))


# Footers that claim too many columns, a string that is too long, and a footer that is too long.
@pytest.mark.parametrize(
    ("footer", "length"),
    [
        (b"\x15\x02\x19\xfc\xff\xff\xff\xff\x07", None),
        (b"\x15\x02\x58\xff\xff\xff\xff\x07", None),
        (b"", 2**31 - 1),
    ],
)
def test_footer_that_claims_too_much_is_refused(tmp_path, footer, length):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", length or len(footer)) + b"PAR1")
    with pytest.raises(UsageError, match=r"cannot be read as Parquet: .*(Exceeded size limit|smaller than)"):
        items_of(str(path))


def test_footer_with_a_very_long_string_is_refused(tmp_path):
    """The file is valid, but every program that opens the table would load the string into memory."""
    table = pa.table({"uri": ["a.jpg"]}).replace_schema_metadata({"note": "n" * 17 * 2**20})
    pq.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(UsageError, match=r"cannot be read as Parquet: .*Exceeded size limit"):
        items_of(str(tmp_path / "table.parquet"))
