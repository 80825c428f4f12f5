"""Files of a version as verified local paths, downloaded from remote stores if needed."""
