"""The rows of a new version (reused, embedded, imported) and the last step that publishes it."""
