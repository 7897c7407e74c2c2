"""Weights on disk: safetensors files, model folders, and the writing of them."""
