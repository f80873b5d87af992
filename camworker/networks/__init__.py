"""Networks that end in global pooling and one linear layer, their weights and packages."""
