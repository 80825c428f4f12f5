"""What a command does, for the command line and for programs."""
