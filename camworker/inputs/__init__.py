"""List the items of an INPUT and fetch their bytes."""
