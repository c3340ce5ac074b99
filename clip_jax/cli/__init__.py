"""The `clip-jax` command: one file a group of commands."""
