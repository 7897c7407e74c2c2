"""Rows of the base model that share a batch with rows of an adapter, on a CPU.

vLLM marks a token without an adapter with the index -1. Its PyTorch functions for CPUs take that
index as the last adapter, so a request for the base model that runs next to a request for an
adapter is answered with the adapter's change, without an error (vLLM 0.32.0; vllm-project/vllm pull
requests 48421 and 49656). The kernels for GPUs skip these tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.engine import stored_graph
from serving.engine.prompt_rows import with_prompt_rows

if TYPE_CHECKING:
    import torch

Kernel = Callable[..., None]
"""A function of vLLM that writes into its third argument, the output tensor."""


def register() -> None:
    """Correct vLLM's functions in this process, if it computes on a CPU and has the defect.

    vLLM calls this function in each of its processes, before the model is loaded.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    stored_graph.register()
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if not skips_base_rows(lora_ops.bgmv_shrink):
        # The prefill functions of `lora_ops` call these by name; `punica_cpu` imports them by name.
        for name, corrected in {
            "bgmv_shrink": without_base_rows_shrunk(lora_ops.bgmv_shrink),
            "bgmv_expand": without_base_rows_expanded(lora_ops.bgmv_expand),
            "bgmv_expand_slice": without_base_rows_expanded(lora_ops.bgmv_expand_slice),
        }.items():
            setattr(lora_ops, name, corrected)
            setattr(punica_cpu, name, corrected)
    wrapper = punica_cpu.PunicaWrapperCPU
    wrapper.add_lora_logits = with_prompt_rows(
        wrapper.add_lora_logits, lora_ops.bgmv_shrink, lora_ops.bgmv_expand
    )


def skips_base_rows(shrink: Kernel) -> bool:
    """Return whether vLLM's function computes nothing for a token of the base model."""
    import torch

    out = torch.zeros(1, 1)
    shrink(torch.ones(1, 1), torch.ones(1, 1, 1), out, torch.tensor([-1]), 1.0)
    return bool((out == 0).all())


def without_base_rows_shrunk(shrink: Kernel) -> Kernel:
    """Return `shrink` (the product with an adapter's A), with zeros for tokens of the base model.

    `shrink(inputs, weights, output, indices, scaling)` writes `output` of shape (tokens, rank).
    """

    @functools.wraps(shrink)
    def corrected(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output_tensor: torch.Tensor,
        indices: torch.Tensor,
        scaling: float = 1.0,
    ) -> None:
        shrink(inputs, weights, output_tensor, indices, scaling)
        output_tensor.masked_fill_((indices < 0).unsqueeze(1), 0)

    return corrected


def without_base_rows_expanded(expand: Kernel) -> Kernel:
    """Return `expand` (the product with an adapter's B) that adds nothing for the base model.

    `expand(inputs, weights, output, indices, ...)` reads `inputs` of shape (tokens, rank).
    """

    @functools.wraps(expand)
    def corrected(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output_tensor: torch.Tensor,
        indices: torch.Tensor,
        *places: Any,
        **options: Any,
    ) -> None:
        kept = inputs.masked_fill((indices < 0).unsqueeze(1), 0)
        expand(kept, weights, output_tensor, indices, *places, **options)

    return corrected
