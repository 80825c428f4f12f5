"""From finished files to a published version, and what is done with versions afterwards."""
