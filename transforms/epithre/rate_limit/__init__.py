"""How often the API may be asked: the count of requests in force, and its keepers."""
