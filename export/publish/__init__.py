"""The model card, and publishing a model folder."""
