"""Images for people: thumbnails, contact sheets and the map of a catalog."""
