"""Reads sources: lists files and tables, reads bytes, and prepares them for the API."""
