"""The jobs behind the commands, for the command line and for programs."""
