"""What happened in a run, as JSON and as a page with plots."""
