"""What a command says: log lines, progress, how it ended."""
