"""The commands: their arguments, options and output."""
