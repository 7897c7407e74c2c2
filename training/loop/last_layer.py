"""The last layer computes its output only for positions whose next token is trained.

The loss reads the last layer's output at trained positions only. The layer's queries, its output
projection and its MLP work on each position by itself, so that the other positions, padding
included, need none of them. Keys and values are computed everywhere: later positions read them.
The share of a step that this saves is about (share of untrained tokens) / (number of layers).
"""

from __future__ import annotations

import functools
import threading
import types
from typing import Any

import torch

POSITION_WISE = (
    "mlp",
    "feed_forward",
    "self_attn.q_proj",
    "self_attn.o_proj",
    "self_attn.out_proj",
)
"""Modules of a decoder layer that read one position at a time, under their usual names."""


class TrainedPositions(threading.local):
    """The flat indices of the trained positions of the batch that a thread computes; None for all.

    The value lasts until the next forward pass, because gradient checkpointing runs the layer again
    during the backward pass.
    """

    index: torch.Tensor | None = None


def limit_last_layer(decoder: Any) -> list[Any]:
    """Let `decoder(..., trained=index)` compute the last layer's output only at `index`.

    Elsewhere the last hidden states have no meaning. Without `trained` all are computed.

    Returns:
        The modules with a new forward, the decoder last; only the decoder if its layers have other
        names.
    """
    positions = TrainedPositions()
    layers: Any = getattr(decoder, "layers", None) or getattr(decoder, "h", None) or ()
    modules = _position_wise(layers[-1]) if len(layers) else []
    for module in modules:
        module.forward = types.MethodType(_at_positions(module.forward, positions), module)
    original = decoder.forward

    @functools.wraps(type(decoder).forward)
    def forward(_: Any, *args: Any, trained: torch.Tensor | None = None, **kwargs: Any) -> Any:
        positions.index = trained
        mask = kwargs.get("attention_mask")
        if (
            trained is not None
            and mask is not None
            and kwargs.get("past_key_values") is None
            and bool(mask[:, 0].all())
        ):
            kwargs["attention_mask"] = None  # no token attends to padding on the right
        return original(*args, **kwargs)

    decoder.forward = types.MethodType(forward, decoder)
    return [*modules, decoder]


def _position_wise(layer: Any) -> list[Any]:
    found: list[Any] = []
    for name in POSITION_WISE:
        module = functools.reduce(
            lambda part, key: getattr(part, key, None), name.split("."), layer
        )
        if isinstance(module, torch.nn.Module):
            found.append(module)
    return found


def _at_positions(original: Any, positions: TrainedPositions) -> Any:
    def forward(_: Any, *args: Any, **kwargs: Any) -> Any:
        # A second argument has its own positions: BLOOM's MLP takes the residual.
        if positions.index is None or len(args) != 1 or kwargs:
            return original(*args, **kwargs)
        (hidden,) = args
        flat = hidden.reshape(-1, hidden.shape[-1])
        # As one row: a mixture of experts unpacks three sizes.
        found = original(flat.index_select(0, positions.index).view(1, -1, hidden.shape[-1]))
        if not isinstance(found, torch.Tensor):  # some mixtures of experts return router scores too
            return original(hidden)
        output = found.new_zeros(flat.shape[0], found.shape[-1])
        output = output.index_copy(0, positions.index, found.flatten(0, -2))
        return output.view(*hidden.shape[:-1], -1)

    return forward
