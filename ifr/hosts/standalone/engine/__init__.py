"""Training and testing: schedule, optimizer, workers, checkpoints, logs."""
