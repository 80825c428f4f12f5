"""Pictures for people: thumbnails, contact sheets, a map of a catalog."""
