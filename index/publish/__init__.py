"""Publish finished files as a version, and verify, compare and prune versions."""
