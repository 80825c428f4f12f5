"""Vectors as Parquet: units, shards, samples and reusable vectors."""
