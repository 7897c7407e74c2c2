"""Corrections inside vLLM's processes, loaded as a plugin (group `vllm.general_plugins`)."""


def register() -> None:
    """Apply every correction in this process; vLLM calls it before the model is loaded."""
    from serving.engine import base_rows, waiting

    base_rows.register()
    waiting.register()
