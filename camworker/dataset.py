"""Read the rows of an output."""

from collections.abc import Sequence

import pyarrow as pa

from camworker.ledger.ledger import open_ledger
from camworker.ledger.snapshot import Snapshot
from camworker.storage.uris import open_store


def latest(out: str, recipe: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the current row of every image: that of the latest generation, without removed images.

    Args:
        out: Folder or s3:// prefix that localize wrote to.
        recipe: Id of the recipe to read; needed if `out` holds several.
        columns: Names of the columns to read; all by default, see `camworker.schemas.PREDICTIONS`.

    Returns:
        One row per image, in memory: with all columns about as large as the parts are, uncompressed.

    Raises:
        UsageError: There is nothing to read, or `recipe` is needed or unknown.
        CorruptedError: A part is lost, or what is read of it is not as it was written.
    """
    snapshot = Snapshot.load(open_ledger(open_store(out), recipe, out))
    return pa.concat_tables(snapshot.iter_latest(columns)).replace_schema_metadata(None)
