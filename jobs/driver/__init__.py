"""Feed shards to workers, own the attempts and retries, and report progress."""
