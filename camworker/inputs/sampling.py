"""Draw reproducible samples of items."""

import hashlib
from typing import cast

import pyarrow as pa


def select(items: pa.Table, *, limit: int | None, sample: int | None, seed: int) -> pa.Table:
    """Return the first `limit` items, reduced to a random sample of at most `sample` items.

    The sample consists of the items with the smallest `sample_hash`, so it depends on the seed and the ids
    only. The order of the items is kept.

    Args:
        items: Table with a column image_id.
        limit: Number of items to keep from the start of the table; None keeps all.
        sample: Number of items to draw; None keeps all.
        seed: Seed of the sample.
    """
    if limit is not None:
        items = items.slice(0, limit)
    if sample is not None and sample < items.num_rows:
        image_ids = cast(list[str], items["image_id"].to_pylist())
        hashes = [sample_hash(seed, image_id) for image_id in image_ids]
        items = items.take(sorted(sorted(range(len(hashes)), key=hashes.__getitem__)[:sample]))
    return items


def sample_hash(seed: int, image_id: str) -> bytes:
    """Return the key that orders items for sampling: the 128-bit BLAKE2b hash of seed and image id."""
    return hashlib.blake2b(f"{seed}/{image_id}".encode(), digest_size=16).digest()
