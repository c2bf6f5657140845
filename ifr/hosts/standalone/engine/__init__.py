"""Training and testing: schedule, optimizer, iterations, checkpoints, logs."""
