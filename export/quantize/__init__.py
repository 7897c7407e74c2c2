"""Quantizing a model from its weights alone, or with calibration data."""
