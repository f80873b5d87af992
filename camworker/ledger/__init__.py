"""The output folder: recipe, plans, parts, run records and lease; its readers and checks."""
