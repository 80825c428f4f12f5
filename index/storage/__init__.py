"""Bytes and locks: whole files on any file system, compare-and-swap, what a fork must begin anew."""
