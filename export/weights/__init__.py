"""Weights on disk: safetensors files, model folders, and the JSON files beside them."""
