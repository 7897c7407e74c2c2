"""Adding a LoRA adapter to a model, and writing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from training.adapters.lora_linear import use_lora_linear
from training.config import TrainingConfig
from tuneline.core.errors import ConfigError
from tuneline.models.adapter_config import ADAPTER_CONFIG


def add_lora(config: TrainingConfig, model: Any, task_type: str = "CAUSAL_LM") -> Any:
    """Return the model with a new adapter, as a PEFT model.

    Raises:
        ConfigError: The model has no module that `target_modules` names.
    """
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        use_rslora=config.use_rslora,
        task_type=task_type,
    )
    try:
        tuned = get_peft_model(model, lora)
    except ValueError as error:
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        raise ConfigError(
            f"training.target_modules: {config.target_modules!r} cannot be used on this model "
            f"({str(error).splitlines()[0]})",
            hint=f"Its linear layers: {', '.join(sorted(linear - {'lm_head'}))}; or all-linear.",
        ) from None
    use_lora_linear(tuned)
    return tuned


def write_lora(model: Any, base_name: str, folder: Path) -> None:
    """Write the adapter's weights and its configuration into a folder."""
    # The embeddings are not trained: their copy is not needed, and peft would ask the Hub.
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)
    config_path = folder / ADAPTER_CONFIG
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # A path of this machine means nothing elsewhere, and peft writes sets in no fixed order.
    config["base_model_name_or_path"] = (
        Path(base_name).name if Path(base_name).is_absolute() else base_name
    )
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    config_path.write_text(text, encoding="utf-8")
