"""Class-specific units and the patches that activate them."""
