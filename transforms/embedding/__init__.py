"""Embed units: one unit, the lane that sends its requests, and the spending limits."""
