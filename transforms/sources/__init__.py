"""From sources to bytes that may be sent: listing, tables, reading, preparing."""
