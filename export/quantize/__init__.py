"""Quantization of a model from only its weights, or with calibration data."""
