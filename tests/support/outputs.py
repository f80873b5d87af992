"""What is in an output, while others write it or after they were killed: parts by inode, rows to compare."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def parts_of(out: Path) -> dict[str, tuple[int, int]]:
    """Committed parts: name -> (inode, modification time), which both change when one is made again."""
    found = out.glob("predictions/*/*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def wait_until_nothing_writes(out: Path) -> None:
    """Ray's processes end a moment after their driver; what they commit meanwhile counts too."""
    before, quiet = parts_of(out), time.monotonic() + 3
    while time.monotonic() < quiet:
        time.sleep(0.2)
        if (now := parts_of(out)) != before:
            before, quiet = now, time.monotonic() + 3


def assert_same_rows(ours: pa.Table, theirs: pa.Table) -> None:
    """Two outputs' rows, each sorted by image_id: the same but for the last digits of their numbers."""
    for name in ("image_id", "status", "width", "height", "labels", "names"):
        assert ours[name].to_pylist() == theirs[name].to_pylist(), name
    for name in ("scores", "boxes"):
        left, right = (table[name].combine_chunks().flatten() for table in (ours, theirs))
        fields = ("score", "xmin", "ymin", "xmax", "ymax") if name == "boxes" else (None,)
        for field in fields:
            a, b = (np.asarray(x if field is None else x.field(field)) for x in (left, right))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    a, b = (maps_of(table) for table in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2)


def maps_of(table: pa.Table) -> np.ndarray:
    """CAMs of the rows that have some, as float64 [n, k, h, w]."""
    good = table.filter(pc.equal(table["status"], "ok"))
    return good["cams"].combine_chunks().to_numpy_ndarray().astype(float)
