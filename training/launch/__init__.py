"""Several processes for one training: they start, meet, share batches, and end together."""
