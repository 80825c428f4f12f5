"""Single queries: embed them with the settings of the catalog, and search."""
