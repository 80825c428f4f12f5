"""Files of a version as verified paths on the local disk, brought from remote stores where that is needed."""
