"""The components of a deployment: a folder of manifests and a row of `table.py` each."""
