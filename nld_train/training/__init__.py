"""Training: stages, the optimizer step, checkpoints, metrics."""
