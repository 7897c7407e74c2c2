"""Adapters made from the trained adapter by a change of its tensors, and their references."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.e2e.serving.conftest import reference_of
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.reference import REFERENCE_FILE
from tuneline.models.source import ModelSource

WEIGHTS = "adapter_model.safetensors"
SERVED_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]

Change = Callable[[str, Any], tuple[str, Any] | None]
"""`change(name, tensor)`: the tensor of the variant with its name; None leaves it out."""


def variant(
    adapter: Artifact,
    out: Path,
    change: Change = lambda name, tensor: (name, tensor),
    config: dict[str, Any] | None = None,
    inputs: Sequence[Input] | None = None,
) -> Artifact:
    """Write a complete adapter artifact with other tensors, options or inputs."""
    with new_artifact(
        out, "adapter", config={}, inputs=adapter.manifest.inputs if inputs is None else inputs
    ) as draft:
        for entry in adapter.manifest.files:
            shutil.copy(adapter.path / entry.path, draft.dir / entry.path)
        tensors = load_file(adapter.path / WEIGHTS)
        changed = [found for name, tensor in tensors.items() if (found := change(name, tensor))]
        save_file({name: tensor.contiguous() for name, tensor in changed}, draft.dir / WEIGHTS)
        path = draft.dir / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    return open_artifact(out)


def only(modules: Sequence[str], scale: float = 1.0) -> Change:
    """Keep the tensors of some modules, with each B scaled."""

    def change(name: str, tensor: Any) -> tuple[str, Any] | None:
        if not any(f".{module}." in name for module in modules):
            return None
        return name, tensor * scale if "lora_B" in name else tensor

    return change


def with_reference(adapter: Artifact, base: ModelSource, out: Path) -> Artifact:
    """Record the answers of an adapter by plain forward passes of PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter.path)
    return reference_of(model, base, out, [base.as_input("base"), adapter.as_input("adapter")])


def forged_reference(reference: Artifact, adapter: Artifact, out: Path) -> Artifact:
    """Write the answers of one adapter as the reference of another."""
    config = reference.manifest.config
    inputs = [adapter.as_input("adapter")]
    with new_artifact(out, "reference", config=config, inputs=inputs) as draft:
        shutil.copy(reference.path / REFERENCE_FILE, draft.dir / REFERENCE_FILE)
    return open_artifact(out)
