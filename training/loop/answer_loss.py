"""The loss of trained tokens: only they are projected onto the vocabulary, in chunks."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear_cross_entropy, pad

from training.loop.last_layer import limit_last_layer
from training.loop.packing import small_network
from tuneline.core.progress import logger

IGNORED = -100
MAX_RELATIVE_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""By the number format of the output head. bfloat16 rounds each number by up to 1 part in 256."""
MAX_COMPARED, MAX_COMPARED_SIZE = 64, 2**20
"""Parameters whose gradients are compared, and their largest number of elements."""
COMPARED_TOKENS = 16
"""Tokens before and after the first trained one that are compared."""
MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of a network whose decoder or modules have another signature or other shapes than here."""
CHUNK_LOGITS = 2**24
"""Logits that are in memory at once: 64 MiB in float32."""


def add_answer_loss(model: Any, input_ids: Sequence[int], labels: Sequence[int]) -> bool:
    """Let `model(..., answer_loss=True)` return the summed loss of trained tokens, in nats.

    Three things are left out that do not change it:
    - Only trained positions are projected onto the vocabulary, in chunks that keep no logits for
      the backward pass.
    - The last layer computes only trained positions; see `training.loop.last_layer`.
    - The mask of padding on the right: no token attends to what comes after it.

    Loss and gradients are compared with the model's own on one row, `input_ids` and `labels`, next
    to a shorter row with padding. A model that differs there (soft caps, scales, router losses,
    attention to later tokens), or that cannot compute it, keeps its own loss. A model in bfloat16
    is compared coarsely, and a small network of its class in float32.

    Returns:
        Whether the model has the loss. It is not added on a GPU, where TRL's own kernel also reads
        trained tokens only, or to a head in bfloat16 that is trained or has a bias.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    if (
        type(head) is not torch.nn.Linear
        or head.weight.dtype not in MAX_RELATIVE_DIFFERENCE
        or head.weight.device.type != "cpu"
    ):
        return False
    if head.weight.dtype is torch.bfloat16 and (
        head.bias is not None or head.weight.requires_grad or not _small_network_agrees(base)
    ):
        return False
    before = [(module, module.__dict__.get("forward")) for module in model.modules()]
    limit_last_layer(base.base_model)
    original = base.forward

    # The signature stays the original one: generation reads it.
    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, answer_loss: bool = False, **kwargs: Any) -> Any:
        if not answer_loss:
            return original(*args, **kwargs)
        return _answer_loss(self, *args, **kwargs)

    base.forward = types.MethodType(forward, base)
    try:
        if _equals_own_loss(model, input_ids, labels):
            return True
    except MISFITS as error:
        logger.debug("%s keeps its own loss: %s", type(base).__name__, error)
    for module, own in before:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.forward = own
    return False


def _answer_loss(model: Any, *args: Any, labels: torch.Tensor, **kwargs: Any) -> Any:
    targets = pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    trained = (targets != IGNORED).nonzero().squeeze(1)
    hidden = model.base_model(*args, trained=trained, **kwargs).last_hidden_state
    return loss_of_hidden(model, hidden.flatten(0, 1).index_select(0, trained), targets[trained])


def loss_of_hidden(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, num_at_once: int = 1
) -> Any:
    """Return the summed loss in nats of last hidden states, (tokens, hidden), and their targets.

    Args:
        num_at_once: How many threads compute one, and share the memory of the logits.
    """
    head = model.get_output_embeddings()
    rows = max(64, CHUNK_LOGITS // (head.weight.shape[0] * num_at_once))
    if head.weight.dtype is torch.bfloat16:
        return _HalfLoss.apply(hidden, head.weight, targets, rows)
    return linear_cross_entropy(
        hidden,
        head.weight,
        targets,
        linear_bias=head.bias,
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None),
    )


class _HalfLoss(torch.autograd.Function):  # type: ignore[misc]
    """The summed cross-entropy of h Wᵀ, with h and a frozen W in bfloat16 and sums in float32.

    linear_cross_entropy of torch 2.13 returns the sum in bfloat16, and is slower than in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any, chunk_rows: int) -> Any:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradients = []
        for rows, right in zip(
            hidden.bfloat16().split(chunk_rows), targets[:, None].split(chunk_rows), strict=True
        ):
            logits = (rows @ weight.t()).float()
            normalizers = logits.logsumexp(1, keepdim=True)
            total += (normalizers - logits.gather(1, right)).sum()
            logits.sub_(normalizers).exp_()
            logits.scatter_add_(1, right, torch.full_like(normalizers, -1.0))
            gradients.append(logits.bfloat16() @ weight)
        ctx.save_for_backward(torch.cat(gradients).to(hidden.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, factor: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * factor.to(gradient.dtype), None, None, None


def _small_network_agrees(model: Any) -> bool:
    """Compare the losses in float32 on a small network: bfloat16 would hide a soft cap."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = small_network(model)
        if network is None:
            return False
        network = network.float()
        # Logits as large as those of a trained model: a soft cap leaves small logits as they are.
        torch.nn.init.normal_(network.get_output_embeddings().weight, std=0.3)
    input_ids = list(range(1, 2 * COMPARED_TOKENS + 1))
    labels = [IGNORED] * COMPARED_TOKENS + input_ids[COMPARED_TOKENS:]
    return add_answer_loss(network, input_ids, labels)


def _equals_own_loss(model: Any, input_ids: Sequence[int], labels: Sequence[int]) -> bool:
    device = model.device
    # The end of the prompt and the start of the answer: the model's own loss keeps all logits.
    first = next(index for index, label in enumerate(labels) if label != IGNORED)
    window = slice(max(0, first - COMPARED_TOKENS), first + COMPARED_TOKENS)
    input_ids, labels = input_ids[window], labels[window]
    batch = {
        "input_ids": torch.tensor([[*input_ids], [*input_ids[1:], input_ids[0]]], device=device),
        "labels": torch.tensor([[*labels], [*labels[1:], IGNORED]], device=device),
        "attention_mask": torch.ones(2, len(input_ids), dtype=torch.long, device=device),
        "use_cache": False,
    }
    batch["attention_mask"][1, -1] = 0
    num_trained = int((batch["labels"][:, 1:] != IGNORED).sum())
    compared = compared_parameters(model)
    was_training = model.training
    model.eval()  # without dropout, so that two passes are comparable
    try:
        own = model(**batch).loss
        found = model(**batch, answer_loss=True) / num_trained
        gradients = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, compared, materialize_grads=True)]
            )
            for loss in (own, found)
        ]
    finally:
        model.train(was_training)
    allowed = MAX_RELATIVE_DIFFERENCE[model.get_output_embeddings().weight.dtype]
    # A loss that is not a number is the same on either path; the loop reports it.
    return math.isnan(float(own.detach())) or all(
        float((ours - theirs).norm()) <= allowed * float(theirs.norm())
        for ours, theirs in ((found.detach(), own.detach()), gradients[::-1])
    )


def compared_parameters(model: Any) -> list[torch.Tensor]:
    """Return trained parameters from all layers, few enough that two gradients are small."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    small = [parameter for parameter in trained if parameter.numel() <= MAX_COMPARED_SIZE]
    # An odd step: lora_A and lora_B alternate, and the gradient of lora_A is 0 at the start.
    return small[:: len(small) // MAX_COMPARED | 1] or trained[-1:]
