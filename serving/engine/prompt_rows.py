"""Log-probabilities of a prompt under an adapter, on a CPU.

vLLM computes them from a row of logits for each token of the prompt, while its list of adapters has
a row for each request of the step (vLLM 0.32.0). Next to other requests the two do not fit, and the
engine ends with an error. An adapter without a part for the output head, the usual case, changes
none of these rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Kernel = Callable[..., None]


def with_prompt_rows(add_logits: Kernel, shrink: Kernel, expand: Kernel) -> Kernel:
    """Return vLLM's method `add_lora_logits`, for rows of prompts too.

    Rows of a prompt get the change of the adapter that all requests of the step share. If they
    share none and an adapter changes the head, the logits become NaN: a request ends with an
    error, and the engine does not.

    Args:
        add_logits: The method of vLLM's wrapper for CPUs.
        shrink: vLLM's product with an adapter's A.
        expand: vLLM's product with an adapter's B.
    """

    @functools.wraps(add_logits)
    def corrected(
        self: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **options: Any,
    ) -> None:
        import torch

        indices = self.sampler_indices
        num_rows = x.view(-1, x.shape[-1]).shape[0]
        if num_rows == len(indices):
            add_logits(self, y, x, lora_a_stacked, lora_b_stacked, scale, **options)
        elif bool(lora_b_stacked.any()):
            if len(indices) and bool((indices == indices[0]).all()):
                of_rows = indices[:1].expand(num_rows)
                rank = lora_b_stacked.size(-1)
                buffer = torch.zeros(num_rows, rank, dtype=torch.float32, device=x.device)
                shrink(x.view(num_rows, -1), lora_a_stacked, buffer, of_rows, scale)
                expand(buffer, lora_b_stacked, y.view(num_rows, -1), of_rows, add_inputs=True)
            else:
                y.fill_(torch.nan)

    return corrected
