"""Storage: atomic files on any file system, compare-and-swap, and locks that survive a fork."""
