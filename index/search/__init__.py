"""Open and search a catalog: NumPy vectors in, hits out."""
