"""Corrections inside vLLM's processes, loaded as a plugin (group `vllm.general_plugins`)."""

import os


def register() -> None:
    """Apply every correction in this process; vLLM calls it before the model is loaded."""
    from serving.engine import base_rows, tool_blanks, waiting

    if os.getpid() == 1:  # the first process of a container, before the engine starts
        from serving.middleware.left_files import remove_left_files

        remove_left_files()
    base_rows.register()
    tool_blanks.register()
    waiting.register()
