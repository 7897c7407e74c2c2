"""Does an adapter fit the live server? Checked from its files, before vLLM loads it.

vLLM 0.32 accepts adapters that then do nothing: it compares only the last part of a module's name,
and a tensor whose module it does not find is left out without a word.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from serving.adapters.settings import AdapterSettings
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.errors import ArtifactError
from tuneline.models.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    read_adapter_config,
    require_servable,
)
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.network import tensor_shapes

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?:embedding_)?(?P<half>[AB])\b.*")
MOST_NAMED = 3
"""Tensors that a message lists."""


def require_fit(adapter: Artifact, reference: Artifact, settings: AdapterSettings) -> None:
    """Check base, reference, rank, modules and content of an adapter.

    Raises:
        ArtifactError: The adapter does not fit the server, or would do nothing.
    """
    _require_input(adapter, "base", settings.base_digest, "the base model of this server")
    _require_input(reference, "adapter", adapter.digest, "this adapter")
    path = adapter.path / ADAPTER_CONFIG
    config = read_adapter_config(adapter.path)
    require_servable(config, path)
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > settings.max_lora_rank:
        raise ArtifactError(
            f"{path}: the rank is {rank}; expected at most {settings.max_lora_rank}",
            hint="Raise serving.adapters.max_lora_rank and start the server again.",
        )
    if config.get("lora_alpha") == 0:
        raise ArtifactError(f"{path}: lora_alpha is 0, so the adapter changes nothing")
    _require_modules(adapter.path / ADAPTER_WEIGHTS, settings.base_dir)
    require_content(adapter.path / ADAPTER_WEIGHTS)


def _require_input(artifact: Artifact, role: str, digest: str, what: str) -> None:
    found = {entry.role: entry.digest for entry in artifact.manifest.inputs}
    if found.get(role) != digest:
        made_from = short_digest(found[role]) if role in found else "none"
        raise ArtifactError(
            f"{artifact.kind} {artifact.short_digest}: its manifest names the {role} {made_from}; "
            f"expected {short_digest(digest)}, {what}"
        )


def _require_modules(weights: Path, base_dir: Path) -> None:
    """Check that every tensor belongs to a module of the base model."""
    names = list(tensor_shapes(weights))
    foreign = [name for name in names if _TENSOR.fullmatch(name) is None]
    if foreign or not names:
        raise ArtifactError(
            f"{weights}: {_few(foreign) or 'no tensor'}; expected "
            "base_model.model.MODULE.lora_A.weight and lora_B.weight"
        )
    if "text_config" in read_json(base_dir / CONFIG):
        return  # the files of such a model name modules otherwise than the loaded model does
    known = {
        name.removesuffix(".weight")
        for path in base_dir.glob("*.safetensors")
        for name in tensor_shapes(path)
    } | {"lm_head"}
    modules = [found["module"] for name in names if (found := _TENSOR.fullmatch(name))]
    # The experts of a layer are one parameter, under a name of PEFT's own.
    missing = sorted({name for name in modules if ".experts" not in name} - known)
    if missing:
        raise ArtifactError(
            f"{weights}: the base model has no module {_few(missing)}; vLLM would leave these "
            "tensors out without a word"
        )


def require_content(weights: Path) -> None:
    """Check that some product of A and B differs from zero.

    Raises:
        ArtifactError: Each module has an A or a B of zeros.
    """
    zeros: dict[str, bool] = {}
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if found := _TENSOR.fullmatch(name):
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                # 0x80 is the sign of a zero that is negative.
                is_zero = not file.read(end - begin).translate(None, b"\x00\x80")
                zeros[found["module"]] = zeros.get(found["module"], False) or is_zero
    if all(zeros.values()):
        raise ArtifactError(f"{weights}: all A or all B are zero, so the adapter changes nothing")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
