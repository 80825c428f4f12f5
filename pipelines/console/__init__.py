"""The output of commands: log lines, progress, outcome."""
