"""The rate limiter of the API's requests, and its backends."""
