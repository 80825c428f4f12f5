"""A single query: embedded with the settings of its catalog, and searched."""
