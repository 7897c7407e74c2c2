"""A PEFT adapter on disk: its options, its tensors, and what the merge refuses of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.merge.methods.method import Part
from export.merge.methods.saved_modules import COPY
from export.merge.methods.table import (
    PEFT_TYPES,
    find_suffix,
    methods_of,
    option_forms,
    unsupported_options,
)
from export.weights.tensor_file import (
    TORCH_DTYPES,
    Stored,
    TensorFile,
    is_finite,
    pieces_of,
    read_tensor_file,
)
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_peft_config
from tuneline.models.schemas import check_form

PREFIX = "base_model.model."
COMPILED = re.compile(r"_orig_mod(\\\\)?\.")
"""The component that `torch.compile` adds to names if a model is compiled before PEFT wraps it. A
pattern in JSON text has two backslashes before the dot. Files and servers do not know the name."""


@dataclass(frozen=True)
class AdapterTensor:
    """One tensor of an adapter, and the base tensor that it belongs to."""

    stored: Stored
    module: str
    """The module, as the adapter names it."""
    part: Part
    target: str
    """The base tensor, as the adapter names it."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's options and the header of its weights; no weight is held in memory."""

    path: Path
    config: dict[str, Any]
    weights: TensorFile
    weight: float | None = None
    """The adapter's share if several are summed; None for one adapter as it is."""

    @property
    def config_path(self) -> Path:
        return self.path / ADAPTER_CONFIG

    @property
    def named_base(self) -> str:
        """The hint that says which base the adapter names."""
        base = self.config.get("base_model_name_or_path")
        return f"The adapter names {base!r} as its base."

    def tensors(self) -> list[AdapterTensor]:
        """Return the adapter's tensors in the order of the file.

        Raises:
            ArtifactError: No method in the table has a tensor of this name.
        """
        found = []
        for entry in self.weights.entries:
            module, part = parse_key(self, entry.name)
            stored = Stored(self.weights, entry)
            found.append(AdapterTensor(stored, module, part, f"{module}{part.ending}"))
        return found


def read_adapter(path: Path, weight: float | None = None) -> Adapter:
    """Open a PEFT adapter's folder and check that the merge supports everything in it.

    Raises:
        ArtifactError: The folder is not an adapter, is pickled or corrupt, holds NaN or infinite
            values, or uses a method or an option that is not supported; the message names it.
    """
    adapter = read_outline(path, weight)
    _check_finite(adapter.weights)
    return adapter


def read_outline(path: Path, weight: float | None = None) -> Adapter:
    """Open a PEFT adapter's folder as `read_adapter` does, without reading a value.

    Raises:
        ArtifactError: The folder is not an adapter, is pickled or corrupt, or uses a method or an
            option that is not supported; the message names it.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such folder; expected a PEFT adapter folder")
    where = path / ADAPTER_CONFIG
    config = json.loads(COMPILED.sub("", json.dumps(read_peft_config(path))))
    peft_type = config.get("peft_type")
    if peft_type not in PEFT_TYPES:
        raise ArtifactError(
            f"{where}: peft_type: {peft_type!r} is not supported by the merge; expected one of "
            f"{', '.join(PEFT_TYPES)}",
            hint="Try: merge it with peft (merge_and_unload).",
        )
    for form in option_forms(config):
        check_form(where, config, form)
    refused = unsupported_options(config)
    if refused:
        raise ArtifactError(
            f"{where}: {', '.join(refused)}: not supported by the merge of {peft_type} adapters",
            hint="Try: merge it with peft (merge_and_unload), or train without that option.",
        )
    if not (path / ADAPTER_WEIGHTS).is_file():
        pickles = sorted(file.name for file in path.glob("*.bin"))
        if pickles:
            raise ArtifactError(
                f"{path}: holds only pickled weights ({', '.join(pickles)}); expected "
                f"{ADAPTER_WEIGHTS}",
                hint="A pickle can run code when it is read. Try: load it with peft where you "
                "trust it, and save it again.",
            )
    weights = read_tensor_file(path / ADAPTER_WEIGHTS)
    if not weights.entries:
        raise ArtifactError(f"{weights.path}: holds no tensors; expected those of an adapter")
    entries = [replace(entry, name=COMPILED.sub("", entry.name)) for entry in weights.entries]
    return Adapter(path, config, replace(weights, entries=tuple(entries)), weight)


def parse_key(adapter: Adapter, key: str) -> tuple[str, Part]:
    """Return the module and the part that an adapter tensor's name says.

    For a copy under the base tensor's own name, the module is that name.

    Raises:
        ArtifactError: No method in the table has a tensor of this name.
    """
    where, config = adapter.weights.path, adapter.config
    name = key.removeprefix(PREFIX)
    if name != key:
        found = find_suffix(config, name)
        if found is not None:
            suffix, part = found
            return name.removesuffix(suffix), part
        if any(method.claims(config, name) for method in methods_of(config)):
            return name, Part(COPY.name, ending="", is_copy=True)
        if name.endswith(".bias") and ".lora_" not in name:
            raise ArtifactError(
                f"{where}: {key}: is a bias; expected none, because the option bias is 'none'"
            )
        if name.endswith(".weight") and ".lora_" not in name:
            raise ArtifactError(
                f"{where}: {key}: is a module saved whole; expected modules_to_save in "
                f"{ADAPTER_CONFIG} to name it"
            )
    raise ArtifactError(
        f"{where}: {key}: is a tensor of an unknown kind; expected names such as "
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight",
        hint="peft does not load such a name either, and warns. Try: save the adapter with peft's "
        "save_pretrained, not as a state_dict.",
    )


def _check_finite(weights: TensorFile) -> None:
    for entry in weights.entries:
        if entry.dtype not in TORCH_DTYPES:
            raise ArtifactError(
                f"{weights.path}: {entry.name}: is stored as {entry.dtype}; expected one of "
                f"{', '.join(TORCH_DTYPES)}"
            )
        if not all(is_finite(piece) for piece in pieces_of(Stored(weights, entry))):
            raise ArtifactError(f"{weights.path}: {entry.name}: holds NaN or infinity")
