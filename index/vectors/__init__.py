"""Vectors as Parquet: units, shards, samples kept aside, and what was paid for before."""
