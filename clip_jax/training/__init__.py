"""The run: state, step, loop, checkpoints."""
