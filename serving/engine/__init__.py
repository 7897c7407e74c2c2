"""Corrections inside vLLM's processes, loaded as a plugin (group `vllm.general_plugins`)."""
