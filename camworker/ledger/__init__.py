"""The records of an output: recipe, plans, parts, run records and lease; and what reads and checks them."""
