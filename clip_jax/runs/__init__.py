"""What a run leaves behind and goes on from: its directory, checkpoints, accounts of time."""
