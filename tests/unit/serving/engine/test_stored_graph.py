"""TorchInductor's stored functions have the method that vLLM calls after a load."""

from __future__ import annotations

import inspect

import pytest

from serving.engine.stored_graph import METHOD, register


def test_a_stored_function_has_the_method_that_vllm_calls() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed; its source is what is read")
    from torch._dynamo.aot_compile_types import BundledAOTAutogradSerializableCallable
    from vllm.compilation import decorators

    assert f".{METHOD}(" in inspect.getsource(decorators), "vLLM does not call it: drop it"
    register()
    register()

    class Compiled:
        def serialize(self) -> None:
            return

        def __call__(self, number: int) -> int:
            return number + 1

    stored = BundledAOTAutogradSerializableCallable(Compiled())
    assert getattr(stored, METHOD)(None) is None
    assert stored(1) == 2
