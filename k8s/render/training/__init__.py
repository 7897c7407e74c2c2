"""Writing the manifests of a training in the cluster."""
