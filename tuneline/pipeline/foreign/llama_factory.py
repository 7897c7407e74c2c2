"""LLaMA-Factory's YAML or JSON, with the entries of its dataset_info.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.pipeline.foreign.reading import NEW_ADAPTER, Foreign

STAGES = {"sft": "sft", "dpo": "dpo", "kto": "kto", "rm": "reward"}
COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "history": "history",
    "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected",
    "kto_tag": "label",
}  # fmt: skip
"""Names of columns in dataset_info.json under Alpaca's form, and ours."""
REFUSED = {
    "train_on_prompt": "the loss is on answers only",
    "template": "the base model's own chat template is trained and served",
    "neat_packing": "packed rows never see one another here",
    "freeze_trainable_layers": "an adapter or all weights are trained",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "additional_target": "set training.modules_to_save",
    "mix_strategy": "sources are concatenated; set weight in data.sources",
    "interleave_probs": "sources are concatenated; set weight in data.sources",
    "adapter_name_or_path": NEW_ADAPTER,
    "use_unsloth": "Unsloth is not used",
    "plot_loss": "the loss curve is always drawn",
}
DEFAULTS = {
    "learning_rate": 5e-5, "num_train_epochs": 3, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear", "warmup_steps": 0,
    "max_length": 2048, "r": 8, "target_modules": "all-linear",
}  # fmt: skip
"""Values that LLaMA-Factory uses without the key."""
QUIET = (
    "do_train", "do_eval", "do_predict", "predict_with_generate", "per_device_eval_batch_size",
    "include_num_input_tokens_seen", "eval_on_start", "logging_dir",
)  # fmt: skip
"""Keys that choose nothing about the result."""


def is_llama_factory(values: Mapping[str, Any]) -> bool:
    """Return whether keys are those of LLaMA-Factory."""
    return "model_name_or_path" in values and (
        "finetuning_type" in values or ("stage" in values and "dataset" in values)
    )


def read_llama_factory(foreign: Foreign) -> None:
    """Take over the keys of a LLaMA-Factory configuration."""
    foreign.base("model_name_or_path", "model_revision")
    _data(foreign)
    kind = foreign.take("finetuning_type")
    if kind in ("lora", "full"):
        foreign.choose("training.finetuning_type", kind)
    elif kind is not None:
        foreign.note(f"finetuning_type: {kind}: a LoRA adapter is trained")
    if foreign.take("mask_history"):
        foreign.choose("training.train_on", "last_turn")
    foreign.copy(
        {
            "lora_rank": "training.r",
            "use_rslora": "training.use_rslora",
            "use_dora": "training.use_dora",
            "enable_liger_kernel": "training.use_liger_kernel",
            "cutoff_len": "training.max_length",
            "eval_steps": "training.eval_steps",
            "save_steps": "training.save_steps",
        }
    )
    targets = foreign.take("lora_target")
    if isinstance(targets, str) and targets != "all":
        targets = [name.strip() for name in targets.split(",")]
    foreign.choose("training.target_modules", "all-linear" if targets == "all" else targets)
    ratio = foreign.take("warmup_ratio")
    if "warmup_steps" not in foreign.values:
        foreign.choose("training.warmup_steps", ratio)
    foreign.dtype("pure_bf16" if "pure_bf16" in foreign.values else "bf16")
    bits = foreign.take("quantization_bit")
    # The base of a reward model is not loaded in 4 bits.
    is_adapter = kind != "full" and foreign.values.get("stage") != "rm"
    foreign.quantized(None if bits is None else int(bits), is_adapter)
    foreign.trackers()
    foreign.take("quantization_method", "double_quantization")
    foreign.optimizer("optim")
    foreign.scheduler("lr_scheduler_type")
    foreign.copy_same()
    _method(foreign)
    foreign.fill(DEFAULTS)
    ranks = [choice.value for choice in foreign.choices if choice.key == "training.r"]
    foreign.fill({"lora_alpha": 2 * ranks[0]} if ranks else {})
    foreign.note(
        "cutoff_len: LLaMA-Factory cuts longer rows; here they are refused, or data.checks.length "
        "drops or cuts them"
    )
    for name in QUIET:
        foreign.take(name)
    foreign.refuse(REFUSED)


def _method(foreign: Foreign) -> None:
    stage, beta = foreign.take("stage"), foreign.take("pref_beta")
    loss = foreign.take("pref_loss")
    if stage == "dpo" and loss == "orpo":
        foreign.choose("training.method.type", "orpo")
        foreign.choose("training.method.beta", beta)
    elif stage in STAGES:
        foreign.choose("training.method.type", STAGES[stage])
        if stage in ("dpo", "kto"):
            foreign.choose("training.method.beta", beta)
        if stage == "dpo" and loss in ("hinge", "ipo", "sigmoid"):
            foreign.choose("training.method.loss_type", [loss])
        elif stage == "dpo" and loss is not None:
            foreign.note(f"pref_loss: {loss}: sigmoid is used")
    elif stage:
        foreign.note(f"stage: {stage}: known are {', '.join(STAGES)}; sft is used")


def _data(foreign: Foreign) -> None:
    folder = Path(str(foreign.take("dataset_dir") or "data"))
    registry = _registry(foreign, folder)
    names = _names(foreign.take("dataset"))
    sources = [_source(foreign, name, folder, registry) for name in names]
    if len(sources) == 1:
        for key, value in sources[0].items():
            foreign.choose(f"data.{key}", value)
    elif sources:
        foreign.choose("data.sources", sources)
    held = _names(foreign.take("eval_dataset"))
    share = foreign.take("val_size")
    if held:
        foreign.choose("data.heldout_path", _source(foreign, held[0], folder, registry)["path"])
        if len(held) > 1:
            foreign.note(f"eval_dataset: the first of {len(held)} is used")
    elif isinstance(share, float) and 0 < share < 1:
        foreign.choose("data.heldout_fraction", share)
    elif share:
        foreign.note(f"val_size: {share}: is a number of rows; a tenth of the prompts is held out")


def _names(value: Any) -> list[str]:
    names = value if isinstance(value, list) else str(value or "").split(",")
    return [str(name).strip() for name in names if str(name).strip()]


def _registry(foreign: Foreign, folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        foreign.note(
            f"{path}: cannot be read, and the names of data sets are taken for Hub names; run "
            "tuneline init in the folder from which LLaMA-Factory runs"
        )
        return {}
    return found if isinstance(found, dict) else {}


def _source(
    foreign: Foreign, name: str, folder: Path, registry: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one entry of dataset_info.json as a source."""
    entry = dict(registry.get(name) or {})
    if file := entry.pop("file_name", None):
        source: dict[str, Any] = {"path": foreign.data_path(str(folder / file))}
    else:
        source = {"path": f"hf:{entry.pop('hf_hub_url', None) or name}"}
        if name not in registry:
            foreign.note(f"dataset: {name}: is not in dataset_info.json; taken for a Hub name")
    form = entry.pop("formatting", "alpaca")
    ranking = entry.pop("ranking", False)
    columns = dict(entry.pop("columns", {}))
    given = {}
    for theirs, column in columns.items():
        ours = "messages" if theirs == "messages" else COLUMNS.get(theirs)
        if ours is None:
            foreign.note(f"column {theirs} of {name}: has no counterpart")
        elif ours != column and not (theirs == "messages" and column == "conversations"):
            given[ours] = column
    if given:
        source["columns"] = given
    if name in registry:
        plain = {"alpaca": "alpaca", "sharegpt": None}.get(form)
        is_label = "kto_tag" in columns or foreign.values.get("stage") == "kto"
        shape = "preference" if ranking else "label" if is_label else plain
        source |= {"shape": shape} if shape else {}
    for theirs, ours in {"split": "split", "subset": "config"}.items():
        if (value := entry.pop(theirs, None)) and source["path"].startswith("hf:"):
            source[ours] = value
    tags = set((entry.pop("tags", None) or {}).values())
    known = {"role", "content", "from", "value", "user", "assistant", "human", "gpt", "system",
             "observation", "function_call", "tool"}  # fmt: skip
    if tags - known:
        foreign.note(f"tags of {name}: {', '.join(sorted(tags - known))}: are not known here")
    for key, value in entry.items():
        if value not in (None, False, ""):
            foreign.note(f"{key} of {name}: {value}: has no counterpart")
    return source
