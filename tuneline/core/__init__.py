"""The layer below every room: artifacts, configuration, errors, progress, environment.

It imports no room and no machine-learning library.
"""
