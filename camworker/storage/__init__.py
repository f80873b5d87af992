"""Bytes: local folders, memory and object stores, and how Parquet files are opened."""
