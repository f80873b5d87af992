"""Stores of bytes (local folders, memory, S3), locations, atomic writes, and reading of Parquet files."""
