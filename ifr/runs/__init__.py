"""What a run is, whatever the host: its settings, folder, weights, log and start."""
