"""What several rooms must agree on about a model: its folder, tokenizer, template and adapter.

The layer lies between `tuneline.core` and the rooms. It imports torch and transformers only inside
functions, so that a configuration can be read without them.
"""
