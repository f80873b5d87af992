"""From pixels to predictions, and from a shard's items to its committed part."""
