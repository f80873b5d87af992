"""The parts and rows of an output, also while processes write to it or after they were killed."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def parts_of(out: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and modification time of each part by name; both change if a part is rewritten."""
    paths = out.glob("predictions/*/*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def wait_until_nothing_writes(out: Path) -> None:
    """Wait until no part was committed for three seconds: Ray's processes end shortly after their driver."""
    before, quiet = parts_of(out), time.monotonic() + 3
    while time.monotonic() < quiet:
        time.sleep(0.2)
        if (now := parts_of(out)) != before:
            before, quiet = now, time.monotonic() + 3


def assert_same_rows(ours: pa.Table, theirs: pa.Table) -> None:
    """Check that two tables, each sorted by image_id, are equal but for rounding."""
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
    """Return the maps of the rows with status "ok", float64 [n, k h w]."""
    good = table.filter(pc.equal(table["status"], "ok"))
    values = np.frombuffer(b"".join(good["cams"].to_pylist()), "<f2").astype(float)
    return values.reshape(good.num_rows, -1)
