"""The file over ranged reads: the same as one in memory, and no more bytes than needed."""

import io

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from camworker.storage.ranged_file import BLOCK, TAIL, RangedFile

DATA = np.random.default_rng(0).bytes(5 * BLOCK + 77)


class Ranges:
    """Gives ranges of data and remembers which."""

    def __init__(self, data):
        self.data, self.asked = data, []

    def __call__(self, start, stop):
        assert 0 <= start < stop <= len(self.data)
        self.asked.append((start, stop))
        return self.data[start:stop]


def file_of(data, tail):
    ranges = Ranges(data)
    return RangedFile(ranges, len(data), data[len(data) - tail :]), ranges


places = st.integers(0, len(DATA) + 10)
sizes = st.one_of(st.integers(-1, 3 * BLOCK), st.integers(0, 50))


@hypothesis.settings(max_examples=60)
@hypothesis.given(tail=st.sampled_from([0, 1, BLOCK, len(DATA)]), reads=st.lists(st.tuples(places, sizes)))
def test_it_reads_as_a_file_in_memory_does(tail, reads):
    file, _ = file_of(DATA, tail)
    twin = io.BytesIO(DATA)
    for place, size in reads:
        assert file.seek(place) == twin.seek(place)
        assert file.read(size) == twin.read(size)
        assert file.tell() == twin.tell()


def test_seeking():
    file, ranges = file_of(DATA, BLOCK)
    assert file.seek(-3, io.SEEK_END) == len(DATA) - 3
    assert file.read() == DATA[-3:]
    assert file.seek(-2, io.SEEK_CUR) == len(DATA) - 2
    assert (file.read(), file.read(), file.read(5)) == (DATA[-2:], b"", b"")
    with pytest.raises(ValueError, match="no byte -1"):
        file.seek(-1)
    assert (file.seekable(), file.readable(), file.writable()) == (True, True, False)
    assert ranges.asked == []


def test_small_reads_share_a_block_and_large_ones_are_exact():
    file, ranges = file_of(DATA, 100)
    buffered = io.BufferedReader(file, 512)
    assert [buffered.read(100) for _ in range(50)] == [DATA[n : n + 100] for n in range(0, 5000, 100)]
    assert ranges.asked == [(0, BLOCK)]
    file.seek(1000)
    file.read(3 * BLOCK)
    assert ranges.asked[1:] == [(1000, 1000 + 3 * BLOCK)]
    # The end is known and not asked for again.
    file.seek(4 * BLOCK)
    file.read()
    assert ranges.asked[2:] == [(4 * BLOCK, len(DATA) - 100)]


def test_an_empty_file():
    file, ranges = file_of(b"", 0)
    assert (file.read(), file.read(10), file.seek(0, io.SEEK_END)) == (b"", b"", 0)
    assert ranges.asked == []


def test_one_row_group_of_one_column_is_all_that_is_fetched():
    random = np.random.default_rng(1)
    image = pa.array([random.bytes(5000) for _ in range(400)])
    table = pa.table({"id": pa.array(range(400)), "image": image, "other": image})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=100)
    file, ranges = file_of(buffer.getvalue(), TAIL)
    read = pq.ParquetFile(file).read_row_group(1, columns=["image"])
    assert read["image"].to_pylist() == image[100:200].to_pylist()
    column = pq.ParquetFile(io.BytesIO(buffer.getvalue())).metadata.row_group(1).column(1)
    fetched = sum(stop - start for start, stop in ranges.asked)
    assert column.total_compressed_size <= fetched <= column.total_compressed_size + 2 * BLOCK
    assert fetched < len(buffer.getvalue()) / 5
