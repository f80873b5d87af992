"""Fixtures of the chaos tests; a test module loads them as the plugin "chaos.chaos_fixtures"."""

from collections import Counter

import pyarrow as pa
import pytest

from chaos.scene import CLASSES, COUNT, SHARDS, STATUSES, Scene, rows_of, save_network, write_images


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    home = tmp_path_factory.mktemp("scene")
    save_network(home / "package", CLASSES)
    return Scene(write_images(home / "in"), home / "package")


@pytest.fixture(scope="session")
def undisturbed(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of a run without incidents, sorted by image_id."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = scene.localize(out)
    assert done.code == 0, done.err
    assert (done.json["processed"], done.json["parts"]) == (COUNT, SHARDS)
    rows = rows_of(out)
    assert Counter(rows["status"].to_pylist()) == STATUSES
    return rows
