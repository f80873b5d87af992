"""Run shards on Ray workers: queues, retries, lost and hung workers, progress, logs and metrics."""
