"""The layer that rooms share about a model: its folder, tokenizer, chat template and adapter.

It is between `tuneline.core` and the rooms. It imports torch and transformers only inside
functions, so that a configuration can be read without them.
"""
