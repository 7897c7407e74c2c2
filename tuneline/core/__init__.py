"""The ground every room stands on: artifacts, configuration, errors, progress, environment.

Imports none of the rooms and no machine-learning library.
"""
