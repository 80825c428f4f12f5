"""Plan a run: compare the references with the current version, and cut the rest into units."""
