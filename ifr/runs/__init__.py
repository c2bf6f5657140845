"""The parts of a run that all hosts share: its settings, folder, weights, log and start."""
