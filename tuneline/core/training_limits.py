"""Limits of a training, for the rooms that train and deploy."""

from __future__ import annotations

MEASUREMENT_S = 10.0
"""Seconds after a signal for which a measurement of held-out rows goes on. Kubernetes kills a
container after its grace period, and the checkpoint has to be written too."""

TRAINING_EXIT_MARGIN_S = 20
"""Seconds in which the process ends once its checkpoint is written."""
