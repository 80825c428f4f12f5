"""Opens a catalog and searches it: numpy in, hits out."""
