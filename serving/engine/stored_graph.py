"""The compiled model of an earlier start, on a CPU.

vLLM stores the compiled model and loads it at the next start. Its step after the load calls a
method that only its own compiler backend has. On a CPU the backend is TorchInductor, so every load
fails with a warning and the model is compiled again (vLLM 0.32.0). The method has nothing to do
there: TorchInductor's function is whole when it is loaded.
"""

from __future__ import annotations

from typing import Any

METHOD = "finalize_loading"


def register() -> None:
    """Give the class of TorchInductor's stored functions the method that vLLM calls.

    vLLM calls this in each of its processes, before the model is loaded.
    """
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable as Stored

    if METHOD not in vars(Stored):
        setattr(Stored, METHOD, _nothing_to_do)


def _nothing_to_do(_stored: Any, _config: Any) -> None:
    return
