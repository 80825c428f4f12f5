"""What a catalog is worth by labelled queries."""
