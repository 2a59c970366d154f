"""What every package uses and that knows nothing of robots or models: files, workers, devices, timing."""
