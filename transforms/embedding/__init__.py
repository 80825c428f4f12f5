"""One unit, one event loop that sends, and what may be spent."""
