"""The rows of a new version: carried, embedded, imported; and its last step."""
