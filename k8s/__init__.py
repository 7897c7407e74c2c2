"""Running the served model on Kubernetes: the kustomize base, its overlays and components, and
`tuneline deploy render`, which fills them in from a run and checks the result before it is kept.
"""
