"""Bulk search: blocks of queries, their hits and the report."""
