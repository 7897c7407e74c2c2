"""Figures of a training in progress: trackers, a Prometheus endpoint, curves."""
