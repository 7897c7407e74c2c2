"""What surrounds a training loop: checkpoints, signals, curves."""
