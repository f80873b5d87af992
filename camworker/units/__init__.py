"""Class-specific units of a network, and the image patches that activate them most."""
