"""Whether vLLM can serve an adapter next to its base, by what the adapter changes.

vLLM is read, not imported: its registry names the class of each architecture, and the class says
in its bases whether it takes adapters. vLLM 0.32 puts LoRA on linear layers and embeddings.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import torch

from training.adapters.targets import fused_experts, routers
from training.config import TrainingConfig
from tuneline.core.vllm_limits import MAX_LORA_RANK
from tuneline.models.adapter_config import merged_only_options
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.schemas import ModelConfig

TAKES_LORA = "SupportsLoRA"


def unservable(config: TrainingConfig, base: Path, model: Any) -> list[str]:
    """Return the reasons why vLLM cannot serve the adapter next to its base; none if it can.

    Args:
        model: The base with the adapter, as peft's model; its weights are not read.
    """
    if config.finetuning_type == "full":
        return ["every parameter was trained"]
    lora = model.peft_config["default"]
    reasons = merged_only_options({**lora.to_dict(), "peft_type": "LORA"})
    rank = max([lora.r, *lora.rank_pattern.values()])
    if rank > MAX_LORA_RANK:
        reasons.append(f"rank {rank} is above vLLM's largest, {MAX_LORA_RANK}")
    if config.load_in_4bit:
        reasons.append("it belongs to the base rounded to NF4")
    plain = model.get_base_model()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    chosen = set(routers(plain))
    if any(".experts." in name for name in trained):
        reasons.append("it changes fused experts")
    if any(f".{name}.lora_" in parameter for name in chosen for parameter in trained):
        reasons.append("it changes a router")
    is_mixture = bool(chosen or fused_experts(plain))
    if is_mixture and not torch.cuda.is_available():
        reasons.append("vLLM on a CPU loads no mixture of experts with adapters")
    names = read_json(base / CONFIG, ModelConfig).get("architectures") or []
    if names and takes_lora(str(names[0])) is False:
        reasons.append(f"vLLM's {names[0]} takes no adapters")
    return reasons


def takes_lora(architecture: str) -> bool | None:
    """Return whether the installed vLLM takes adapters for an architecture; None if it is not
    installed or does not list the architecture."""
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        return None
    models = Path(package.origin).parent / "model_executor" / "models"
    where = _registry(models / "registry.py").get(architecture)
    return None if where is None else _derives(models, *where)


def _registry(path: Path) -> dict[str, tuple[str, str]]:
    """Return the module and the class of each architecture, from the tables in a source file."""
    found: dict[str, tuple[str, str]] = {}
    if not path.is_file():
        return found
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
                parts = [p.value for p in value.elts if isinstance(p, ast.Constant)]
                if len(parts) == 2 and all(isinstance(part, str) for part in parts):
                    found[str(key.value)] = (str(parts[0]), str(parts[1]))
    return found


def _derives(models: Path, module: str, name: str) -> bool:
    """Return whether a class derives from SupportsLoRA, in its module or through imported ones."""
    path = models / f"{module.replace('.', '/')}.py"
    if name == TAKES_LORA:
        return True
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    if name in classes:
        bases = [ast.unparse(base) for base in classes[name].bases]
        return TAKES_LORA in bases or any(
            _derives(models, module, base) for base in bases if base != name
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            source = (node.module or "").rpartition(".")[2]
            return source != module and _derives(models, source, name)
    return False
