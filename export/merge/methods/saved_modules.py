"""Modules that PEFT saves whole: `modules_to_save`, and embeddings whose vocabulary was resized."""

from __future__ import annotations

import re
from collections.abc import Iterator

from export.merge.methods.method import BaseTensor, Config, Method, Part, Want
from export.weights.families import EMBEDDINGS, HEAD
from tuneline.models.adapter_options import CopyOptions

WRAPPER = re.compile(r"\.(modules_to_save|original_module)\.")
"""In the second names that PEFT saves a replaced module under."""

COPY = Part("copy", is_copy=True)


def saved_by(config: Config, module: str) -> list[str]:
    """Return the values of `modules_to_save` that name a module, or a module that it lies in."""
    path = module.split(".")
    modules = [".".join(path[: length + 1]) for length in range(len(path))]
    saved = config.get("modules_to_save") or []
    return [target for target in saved if any(one.endswith(target) for one in modules)]


def _claims(config: Config, name: str) -> bool:
    """Return whether a tensor belongs to a saved module.

    PEFT also saves an embedding or an output layer unasked if the vocabulary was resized; with
    `ensure_weight_tying`, it does so under the names of its wrappers too.
    """
    module = WRAPPER.sub(r".", name).rpartition(".")[0]
    if module.rpartition(".")[2] in (*EMBEDDINGS, HEAD):
        return True
    return bool(module) and bool(saved_by(config, module))


def _wants(config: Config, tensor: BaseTensor) -> Iterator[Want]:
    for target in saved_by(config, tensor.module):
        yield Want("modules_to_save", target, tensor.stored)


METHOD = Method(
    title="a tensor saved whole",
    peft_types=None,
    options=CopyOptions,
    # A low-rank or trained embedding lies next to a copy of the layer that it was put on.
    suffixes={".base_layer.weight": COPY, ".token_adapter.base_layer.weight": COPY},
    claims=_claims,
    wants=_wants,
)
