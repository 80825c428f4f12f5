"""Progress and failures of a run's workers, reported to the launcher through files in the run folder."""
