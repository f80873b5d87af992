"""One of a thousand images crashes its decoder: only this image and one worker are lost."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from chaos.incidents import in_processes
from chaos.scene import COUNT, Scene, rows_of
from support.fatal_decoder import ABORT
from support.outputs import assert_same_rows

pytest_plugins = ["chaos.chaos_fixtures"]
pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)]


def test_other_images_are_unaffected(scene: Scene, undisturbed: pa.Table, tmp_path: Path) -> None:
    """The image is in the middle of a shard and of a batch, and another shard is queued behind it."""
    folder, victim = tmp_path / "in", "0524.jpg"
    shutil.copytree(scene.folder, folder)
    with open(folder / victim, "ab") as file:
        file.write(ABORT)
    out = tmp_path / "out"
    done = Scene(folder, scene.package).localize(out, "--workers", "1", environment=in_processes())
    assert done.code == 0, done.err
    assert (done.json["processed"], done.json["failed"]["poison"]) == (COUNT, 1)
    assert done.err.count("ended its worker") == 1
    assert "shard 10 ended its worker" in done.err

    rows = rows_of(out)
    poison = rows.filter(pc.equal(rows["status"], "poison"))
    assert poison["image_id"].to_pylist() == [victim]
    assert "SIGABRT" in poison["error"][0].as_py()
    others = (table.filter(pc.not_equal(table["image_id"], victim)) for table in (rows, undisturbed))
    assert_same_rows(*others)
