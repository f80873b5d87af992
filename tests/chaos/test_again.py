"""Further runs on an output, without changes and with new and changed images, while readers poll it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest

from camworker.schemas import PREDICTIONS
from chaos.incidents import Incident, in_processes
from chaos.scene import COUNT, SIZE, Scene, rows_of, write_images
from support.outputs import assert_same_rows

pytest_plugins = ["chaos.chaos_fixtures"]
pytestmark = [
    *(pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(900)),
]

NEW, CHANGED = 10, 5
Rows = list[tuple[str, int]]
COLUMNS = set(PREDICTIONS.names)


def by_pyarrow(out: Path) -> tuple[set[str], Rows]:
    table = pyarrow.dataset.dataset(out / "predictions", partitioning="hive").to_table()
    return set(table.column_names), list(zip(*table.select(KEY).to_pydict().values(), strict=True))


def by_duckdb(out: Path) -> tuple[set[str], Rows]:
    with duckdb.connect() as connection:
        found = connection.sql(f"select * from read_parquet('{out}/predictions/**/*.parquet')")
        return set(found.columns), found.select(*map(duckdb.ColumnExpression, KEY)).fetchall()


def by_polars(out: Path) -> tuple[set[str], Rows]:
    frame = pl.read_parquet(f"{out}/predictions/**/*.parquet")
    return set(frame.columns), frame.select(KEY).rows()


KEY = ["image_id", "generation"]
READERS: tuple[Callable[[Path], tuple[set[str], Rows]], ...] = (by_pyarrow, by_duckdb, by_polars)


class Watch:
    """Readers that poll an output, each in a thread of its own.

    Attributes:
        seen: The number of rows that each reader found in each poll.
        mismatches: What the readers found wrong.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seen: dict[str, list[int]] = {reader.__name__: [] for reader in READERS}
        self.mismatches: list[str] = []
        self._ended = threading.Event()

    def poll(self, reader: Callable[[Path], tuple[set[str], Rows]]) -> None:
        while not self._ended.wait(0.2):
            if not any(self.out.glob("predictions/*/*.parquet")):
                continue
            try:
                columns, rows = reader(self.out)
            except Exception as error:
                self.mismatches.append(f"{reader.__name__}: {error!r}")
                return
            if missing := COLUMNS - columns:
                self.mismatches.append(f"{reader.__name__}: no columns {missing}")
            if len(set(rows)) < len(rows):
                self.mismatches.append(f"{reader.__name__}: an image twice in a generation")
            self.seen[reader.__name__].append(len(rows))

    def end(self) -> None:
        self._ended.set()


@contextmanager
def watched(out: Path) -> Iterator[Watch]:
    """Poll an output until the block ends."""
    watch = Watch(out)
    threads = [threading.Thread(target=watch.poll, args=(reader,)) for reader in READERS]
    for thread in threads:
        thread.start()
    try:
        yield watch
        time.sleep(1)  # The readers see the final state.
    finally:
        watch.end()
        for thread in threads:
            thread.join()


def test_only_new_images_are_processed_and_readers_see_complete_parts(
    scene: Scene, undisturbed: pa.Table, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out", write_images(tmp_path / "in")
    mine = Scene(folder, scene.package)
    killed = Incident(
        "camworker.storage.local",
        "os.link",
        tmp_path / "draft without a name",
        argument="predictions/",
        call=6,
    )
    with watched(out) as watch:
        done = mine.localize(out, environment=in_processes(killed))
        assert (done.code, killed.happened) == (0, True), done.err
        first = rows_of(out)
        assert_same_rows(first, undisturbed)

        again = mine.localize(out)
        assert (again.code, again.json["processed"], again.json["skipped"]) == (0, 0, COUNT)

        write_images(tmp_path / "more", NEW + CHANGED, seed=1)
        new = [f"new {number}.jpg" for number in range(NEW)]
        changed = sorted(path.name for path in folder.iterdir())[:CHANGED]
        for source, name in zip(sorted((tmp_path / "more").iterdir()), [*new, *changed], strict=True):
            source.replace(folder / name)
        done = mine.localize(out, "--shard-size", str(SIZE // 10))
        assert done.code == 0, done.err
        assert (done.json["generation"], done.json["processed"]) == (2, NEW + CHANGED)
    assert not watch.mismatches
    for seen in watch.seen.values():
        # Parts appeared one after another, and none disappeared.
        assert seen == sorted(seen)
        assert len(set(seen)) > 3
        assert seen[-1] == COUNT + NEW + CHANGED

    rows = rows_of(out)
    ids = rows["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == COUNT + NEW
    generations = dict(zip(ids, rows["generation"].to_pylist(), strict=True))
    assert {image_id for image_id in ids if generations[image_id] == 2} == {*new, *changed}
