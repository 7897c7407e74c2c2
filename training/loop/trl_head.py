"""TRL's output head: at trained positions only, and compared with the model's own.

TRL 1.16 multiplies hidden states by the head's weight itself, and knows the scales and soft caps of
most families by the names of their configuration. RecurrentGemma, xLSTM and Chameleon have others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer import utils

from tuneline.core.errors import ConfigError

NUM_TOKENS = 32
MAX_DIFFERENCE = 1e-3
"""Nats of one token's log-probability, in float32."""
MAX_DIFFERENCE_16 = 0.1
"""The same in 16 bits, where a logit of 20 is rounded by 0.06."""


def project_trained_positions() -> None:
    """Let TRL's head project only positions whose next token is trained, on every machine.

    TRL 1.16 does so with Triton, and asks for Triton nowhere else in this module. Without it, it
    projects all positions so that no shape changes, for devices that compile every new shape. A CPU
    compiles nothing.
    """
    utils._use_triton = lambda _device: True


def trl_head_fits(model: Any, input_ids: Sequence[int], temperature: float = 1.0) -> bool:
    """Return whether TRL computes the log-probabilities of a row that the model itself gives.

    Args:
        model: A model that a trainer of TRL has been made with.
        temperature: Divides the logits in the trainer.
    """
    ids = torch.tensor([list(input_ids[:NUM_TOKENS])], device=model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float() / temperature
            own = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.float()
    finally:
        model.train(was_training)
    limit = MAX_DIFFERENCE if model.dtype is torch.float32 else MAX_DIFFERENCE_16
    # A value that is not a number is the same on either path; the loop reports it.
    return not bool((found - own).abs().max() > limit)


def require_trl_head(
    model: Any, method: str, input_ids: Sequence[int], temperature: float = 1.0
) -> None:
    """Check that a method which reads TRL's log-probabilities trains on the model's own.

    Raises:
        ConfigError: It does not.
    """
    if trl_head_fits(model, input_ids, temperature):
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    raise ConfigError(
        f"training.method: {method} on a {type(base).__name__}: the installed TRL leaves out what "
        "this network does with its logits (a soft cap, a scale or a mask), so that it would train "
        "on other probabilities than the model has",
        hint="Try: training.method: {type: sft}, or orpo for pairs, which use the model's own "
        "logits.",
    )
