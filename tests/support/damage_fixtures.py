"""An output that tests of verify damage."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from support.factories import photograph, photographs_of
from support.recorded_generation import complete_generation, open_output


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify") / "in"
    root.mkdir()
    for n in range(10):
        (root / f"{n:02d}.png").write_bytes(photograph(n, width=20 + n))
    return root


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, source, tiny_localizer):
    """Three parts of a complete generation, and one of two parts of an unfinished one."""
    root = tmp_path_factory.mktemp("untouched") / "out"
    ledger = open_output(root)
    items = photographs_of(source)
    complete_generation(ledger, tiny_localizer, items)
    ids = items["image_id"].to_pylist()
    new = items.set_column(0, items.schema.field("image_id"), pa.array([f"new/{i}" for i in ids]))
    complete_generation(ledger, tiny_localizer, new.slice(0, 4), generation=2, size=2, shards=[0])
    return root


@pytest.fixture
def out(untouched, tmp_path):
    """A copy that a test can damage."""
    return Path(shutil.copytree(untouched, tmp_path / "out"))
