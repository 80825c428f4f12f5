"""How a command is spelt: arguments, options, and what is printed."""
