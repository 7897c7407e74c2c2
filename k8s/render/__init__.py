"""Writing the kustomize tree of a run."""
