"""Many queries against one catalog: blocks of queries, their hits, their report."""
