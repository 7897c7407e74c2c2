"""A run in a cluster, through kubectl: changes, rollout, roll-back, canary and status."""
