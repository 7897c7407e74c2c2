"""Memory and time of training, merging and serving, from configuration and headers only."""
