"""The parts around a training loop: checkpoints, signals, curves."""
