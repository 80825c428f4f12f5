"""What launcher and workers of a run tell each other, through files of its run folder: progress and failures."""
