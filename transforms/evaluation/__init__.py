"""Evaluation of a catalog with labelled queries."""
