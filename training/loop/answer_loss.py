"""The loss of trained tokens: only they are projected onto the vocabulary, in chunks."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear_cross_entropy

IGNORED = -100
MAX_RELATIVE_DIFFERENCE = 1e-4


def add_answer_loss(model: Any, input_ids: Sequence[int], labels: Sequence[int]) -> bool:
    """Let `model(..., answer_loss=True)` return the summed loss of trained tokens, in nats.

    The hidden states of positions whose next token is trained are projected onto the vocabulary
    with torch's chunked `linear_cross_entropy`, which keeps no logits for the backward pass.

    The loss is compared with the model's own on one row, `input_ids` and `labels`. A model whose
    head does more than one matrix product (soft caps, scales, router losses) differs there.

    Returns:
        Whether the model has the loss. It is not added on a GPU, where TRL's own kernel also reads
        trained tokens only, or to a head that is not float32.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    if (
        type(head) is not torch.nn.Linear
        or head.weight.dtype is not torch.float32
        or head.weight.device.type != "cpu"
    ):
        return False
    original = base.forward

    # The signature stays the original one: generation reads it.
    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, answer_loss: bool = False, **kwargs: Any) -> Any:
        if not answer_loss:
            return original(*args, **kwargs)
        targets = kwargs.pop("labels")[:, 1:]
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        trained = targets != IGNORED
        head = self.get_output_embeddings()
        return linear_cross_entropy(
            hidden[trained],
            head.weight,
            targets[trained],
            linear_bias=head.bias,
            reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions(),
        )

    base.forward = types.MethodType(forward, base)
    if _equals_own_loss(model, input_ids, labels):
        return True
    base.forward = original
    return False


def _equals_own_loss(model: Any, input_ids: Sequence[int], labels: Sequence[int]) -> bool:
    row = {
        "input_ids": torch.tensor([input_ids], device=model.device),
        "labels": torch.tensor([labels], device=model.device),
        "use_cache": False,
    }
    num_trained = sum(label != IGNORED for label in labels)
    was_training = model.training
    model.eval()  # without dropout, so that two passes are comparable
    with torch.no_grad():
        own = float(model(**row).loss)
        found = float(model(**row, answer_loss=True)) / num_trained
    model.train(was_training)
    # A loss that is not a number is the same on either path; the loop reports it.
    return math.isnan(own) or abs(found - own) <= MAX_RELATIVE_DIFFERENCE * abs(own)
