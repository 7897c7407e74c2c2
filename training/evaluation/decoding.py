"""Greedy decoding of many prompts at once, without the model's sampling defaults and penalties."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tuneline.models.greedy import cache_of

MAX_BATCH = 64
"""More prompts at once gain little on a CPU, and a GPU that needs more is better served by vLLM."""
MEMORY_SHARE = 0.25
"""Share of the free memory that the keys and values, or states, of one batch may take."""


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Return indices of prompts in batches of like length, which need the least padding."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def fitting_batch_size(model: Any, num_tokens: int) -> int:
    """Return how many sequences of `num_tokens` tokens fit into memory, at most `MAX_BATCH`."""
    config = model.config.get_text_config()
    fitting = MEMORY_SHARE * _free_bytes() / (_bytes_per_token(config, model.dtype) * num_tokens)
    return max(1, min(MAX_BATCH, int(fitting)))


def _bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    num_heads = getattr(config, "num_attention_heads", None)
    if num_heads is None:
        # Mamba's state is small; the scan of one layer has the state at each token of the prompt,
        # as the decay, the input and the result, in float32.
        return int(3 * 4 * config.expand * config.hidden_size * config.state_size)
    heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * dtype.itemsize)


def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the tokens of each greedy answer, with the stop token if the answer ends with one.

    Prompts are padded on the left; the mask hides the padding and positions start behind it.
    """
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    step = torch.tensor(
        [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
        device=model.device,
    )
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    extra: dict[str, Any] = {}
    if any(padding):
        extra["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    cache: dict[str, Any] = {}
    for _ in range(max_new_tokens):
        if any(padding):
            # Mamba's state holds no padding, and its mask has the length of the input.
            extra["attention_mask"] = None if "cache_params" in cache else mask
        with torch.inference_mode():
            output = model(input_ids=step, use_cache=True, logits_to_keep=1, **cache, **extra)
        cache = cache_of(output)
        chosen = output.logits[:, -1].argmax(dim=-1)
        for index in sorted(running):
            token = int(chosen[index])
            answers[index].append(token)
            if token in stop_ids:
                running.discard(index)
        if not running:
            break
        step = chosen[:, None] if cache else torch.cat([step, chosen[:, None]], dim=1)
        if any(padding):
            mask = torch.cat([mask, mask.new_ones((len(prompts), 1))], dim=1)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            extra["position_ids"] = positions[:, -step.shape[1] :]
    return answers


def _free_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
