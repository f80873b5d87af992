"""A file over ranged reads equals a file in memory, and fetches no more than it needs."""

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
    """Returns ranges of data and records them."""

    def __init__(self, data):
        self.data, self.requests = data, []

    def __call__(self, start, stop):
        assert 0 <= start < stop <= len(self.data)
        self.requests.append((start, stop))
        return self.data[start:stop]


def file_of(data, tail):
    ranges = Ranges(data)
    return RangedFile(ranges, len(data), data[len(data) - tail :]), ranges


positions = st.integers(0, len(DATA) + 10)
sizes = st.one_of(st.integers(-1, 3 * BLOCK), st.integers(0, 50))


@hypothesis.settings(max_examples=60)
@hypothesis.given(tail=st.sampled_from([0, 1, BLOCK, len(DATA)]), reads=st.lists(st.tuples(positions, sizes)))
def test_it_reads_like_a_file_in_memory(tail, reads):
    file, _ = file_of(DATA, tail)
    expected = io.BytesIO(DATA)
    for position, size in reads:
        assert file.seek(position) == expected.seek(position)
        assert file.read(size) == expected.read(size)
        assert file.tell() == expected.tell()


def test_seeking():
    file, ranges = file_of(DATA, BLOCK)
    assert file.seek(-3, io.SEEK_END) == len(DATA) - 3
    assert file.read() == DATA[-3:]
    assert file.seek(-2, io.SEEK_CUR) == len(DATA) - 2
    assert (file.read(), file.read(), file.read(5)) == (DATA[-2:], b"", b"")
    with pytest.raises(ValueError, match="no byte -1"):
        file.seek(-1)
    assert (file.seekable(), file.readable(), file.writable()) == (True, True, False)
    assert ranges.requests == []


def test_small_reads_share_a_block_and_large_ones_are_exact():
    file, ranges = file_of(DATA, 100)
    buffered = io.BufferedReader(file, 512)
    assert [buffered.read(100) for _ in range(50)] == [DATA[n : n + 100] for n in range(0, 5000, 100)]
    assert ranges.requests == [(0, BLOCK)]
    file.seek(1000)
    file.read(3 * BLOCK)
    assert ranges.requests[1:] == [(1000, 1000 + 3 * BLOCK)]
    # The end of the file is known and not fetched again.
    file.seek(4 * BLOCK)
    file.read()
    assert ranges.requests[2:] == [(4 * BLOCK, len(DATA) - 100)]


def test_an_empty_file():
    file, ranges = file_of(b"", 0)
    assert (file.read(), file.read(10), file.seek(0, io.SEEK_END)) == (b"", b"", 0)
    assert ranges.requests == []


def test_little_more_than_one_column_of_one_row_group_is_fetched():
    random = np.random.default_rng(1)
    image = pa.array([random.bytes(5000) for _ in range(400)])
    table = pa.table({"id": pa.array(range(400)), "image": image, "other": image})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=100)
    file, ranges = file_of(buffer.getvalue(), TAIL)
    read = pq.ParquetFile(file).read_row_group(1, columns=["image"])
    assert read["image"].to_pylist() == image[100:200].to_pylist()
    column = pq.ParquetFile(io.BytesIO(buffer.getvalue())).metadata.row_group(1).column(1)
    fetched = sum(stop - start for start, stop in ranges.requests)
    assert column.total_compressed_size <= fetched <= column.total_compressed_size + 2 * BLOCK
    assert fetched < len(buffer.getvalue()) / 5
