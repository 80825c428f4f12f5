"""What a run has to do: references compared with the published version, cut into units."""
