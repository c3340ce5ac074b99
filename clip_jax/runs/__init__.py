"""What a run writes and resumes from: its directory, checkpoints, metrics and goodput."""
