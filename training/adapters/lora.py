"""Adding a LoRA adapter to a model, and writing it."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper

from training.adapters.lora_linear import use_lora_linear
from training.adapters.targets import find_targets, linear_modules
from training.config import TrainingConfig
from tuneline.core.errors import ConfigError
from tuneline.models.adapter_config import ADAPTER_CONFIG, foreign_options

SAME_NAME = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "rank_pattern",
    "alpha_pattern", "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
)  # fmt: skip
"""Keys of the `training` section that go to peft as they are."""


def add_lora(config: TrainingConfig, model: Any, task_type: str = "CAUSAL_LM") -> Any:
    """Return the model with a new adapter, as a PEFT model.

    Raises:
        ConfigError: An option does not exist or does not fit this model, or a name matches nothing.
    """
    lora = lora_options(config, model, task_type)
    try:
        tuned = get_peft_model(model, lora)
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        names = sorted({name.rpartition(".")[2] for name in linear_modules(model)})
        raise ConfigError(
            f"training.target_modules: {config.target_modules!r} cannot be used on this model "
            f"({reason})",
            hint=f"Its linear layers: {', '.join(names)}; or all-linear.",
        ) from None
    head = tuned.get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        # A tied head has the trained rows too. TRL reads its weight, which has them, and its bias,
        # which peft's wrapper does not know.
        vars(head)["bias"] = head.original_module.bias
    if isinstance(head, BaseTunerLayer):
        raise ConfigError(
            "training.target_modules: puts an adapter on the output head too, which is tied to the "
            "embedding (ensure_weight_tying); the loss is computed from the head's plain weight",
            hint="Remove ensure_weight_tying, or train the embedding whole: "
            "training.modules_to_save: [embed_tokens].",
        )
    _require_biases(tuned)
    use_lora_linear(tuned)
    return tuned


def _require_biases(tuned: Any) -> None:
    """Check that the merge can add the biases of an adapter to biases of the base.

    Raises:
        ConfigError: Layers have an adapter with a bias, and none of their own.
    """
    without = {
        name.rpartition(".")[2]
        for name, module in tuned.named_modules()
        if isinstance(module, LoraLayer)
        and any(module.lora_bias.values())
        and getattr(module.get_base_layer(), "bias", None) is None
    }
    if without:
        raise ConfigError(
            f"training.lora_config.lora_bias: {', '.join(sorted(without))} have no bias in this "
            "model, to which the merge could add that of the adapter",
            hint="Remove lora_bias, or name modules with a bias in training.target_modules.",
        )


def lora_options(config: TrainingConfig, model: Any, task_type: str = "CAUSAL_LM") -> LoraConfig:
    """Return peft's configuration of the adapter for a model; the model is not changed.

    Raises:
        ConfigError: An option does not exist or does not fit this model, or a name matches nothing.
    """
    _check_names(config)
    targets = find_targets(config, model)
    _check_parameters(config, targets.target_parameters)
    options = {name: getattr(config, name) for name in SAME_NAME}
    if not targets.is_resolved:
        options |= {
            "exclude_modules": targets.exclude_modules,
            "layers_to_transform": config.layers_to_transform,
        }
    try:
        lora = LoraConfig(
            **options,
            target_modules=targets.target_modules,
            target_parameters=targets.target_parameters or None,
            task_type=task_type,
            **config.lora_config,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: peft refuses the adapter's options: {error}") from None
    # modules_to_save of a sequence classifier is set by peft itself.
    refused = foreign_options({**lora.to_dict(), "peft_type": "LORA"})
    if lora.init_lora_weights == "eva":
        raise ConfigError(
            "training.lora_config.init_lora_weights: eva needs a pass over the data before "
            "training, which is not made; without it the adapter starts as with true",
            hint="Remove it, or set init_lora_weights: gaussian or orthogonal.",
        )
    if refused:
        raise ConfigError(
            f"training.lora_config: {', '.join(refused)}: the adapter cannot be merged into the "
            "base, because the option changes the base's weights or what the tensors mean",
            hint="Remove the option.",
        )
    return lora


def _check_names(config: TrainingConfig) -> None:
    """Refuse names that the installed peft does not know.

    Raises:
        ConfigError: Every such name, with the nearest one that exists.
    """
    known = [field.name for field in dataclasses.fields(LoraConfig)]
    problems = []
    for name in config.lora_config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            problems.append(
                f"training.lora_config: {name} is not an option of the installed peft's LoraConfig"
                f"{meant}"
            )
    if problems:
        raise ConfigError(problems)


def _check_parameters(config: TrainingConfig, parameters: list[str]) -> None:
    """Refuse options that peft cannot apply to parameters.

    Raises:
        ConfigError: An option is set that peft applies to modules only.
    """
    if not parameters:
        return
    given = {
        "lora_dropout": config.lora_dropout > 0,
        "use_dora": config.use_dora,
        "lora_config.lora_bias": bool(config.lora_config.get("lora_bias")),
        "load_in_4bit": config.load_in_4bit and any(p.endswith(".weight") for p in parameters),
    }
    problems = [
        f"training.{name}: is not possible on {', '.join(parameters)}, which peft trains as "
        "parameters (fused experts, or names that peft takes for experts)"
        for name, is_set in given.items()
        if is_set
    ]
    if problems:
        raise ConfigError(
            problems,
            hint="Remove the option, or train the attention only: --set "
            "training.target_modules='[q_proj, k_proj, v_proj, o_proj]'",
        )


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
    for name in ("target_modules", "target_parameters", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(name), list):
            config[name].sort()
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    config_path.write_text(text, encoding="utf-8")
