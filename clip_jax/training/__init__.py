"""From settings to a trained model: state, step, optimizer, loop."""
