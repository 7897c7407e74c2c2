"""torchtune's YAML: components with their arguments, named by `_component_`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tuneline.pipeline.foreign.reading import NEW_ADAPTER, Foreign

SETS = {
    "alpaca_dataset": "tatsu-lab/alpaca", "alpaca_cleaned_dataset": "yahma/alpaca-cleaned",
}  # fmt: skip
"""Builders of one data set each, and its name on the Hub."""
OPTIMIZERS = {
    "AdamW": "adamw_torch", "AdamW8bit": "adamw_8bit", "PagedAdamW8bit": "paged_adamw_8bit",
    "PagedAdamW": "paged_adamw_32bit",
}  # fmt: skip
SCHEDULE = "get_cosine_schedule_with_warmup"
TARGETS = {"output_proj": "o_proj"}
MLP = ("gate_proj", "up_proj", "down_proj")
TRACKERS = {"WandBLogger": ["wandb"], "TensorBoardLogger": ["tensorboard"], "DiskLogger": []}
SOURCES = ("json", "csv", "parquet", "text")
"""Values of `source` that are formats of the file in `data_files`."""
DEFAULTS = {"num_train_epochs": 1, "gradient_accumulation_steps": 1}
QUIET = (
    "output_dir", "device", "shuffle", "profiler", "log_peak_memory_stats", "log_level", "seed",
    "save_adapter_weights_only", "enable_activation_offloading", "optimizer_in_bwd",
    "cudnn_deterministic_mode",
)  # fmt: skip
"""Keys that choose nothing about the result."""
REFUSED = {
    "compile": "kernels are chosen by training.attn_implementation and use_liger_kernel",
    "resume_from_checkpoint": "an interrupted run continues by itself",
    "custom_sharded_layers": "training.launch spreads a training over processes",
    "quantizer": "export.quantize and export.merge.quantize reduce the weights",
}


def is_torchtune(values: Mapping[str, Any]) -> bool:
    """Return whether keys are those of torchtune's recipes."""
    model = values.get("model")
    return isinstance(model, dict) and "checkpointer" in values and "_component_" in model


def read_torchtune(foreign: Foreign) -> None:
    """Take over the keys of a torchtune configuration."""
    values = foreign.values
    seed = values.get("seed")
    foreign.values = {name: _resolved(value, values) for name, value in values.items()}
    _model(foreign)
    _data(foreign)
    _optimizer(foreign)
    loss = dict(foreign.take("loss") or {})
    name = _name(loss)
    if name.startswith("DPO"):
        foreign.choose("training.method.type", "dpo")
        foreign.choose("training.method.beta", loss.get("beta"))
    elif not name.startswith(("CE", "CrossEntropy", "LinearCrossEntropy", "Chunked")) and loss:
        foreign.note(f"loss: {name}: sft is used; set training.method")
    foreign.copy(
        {
            "epochs": "training.num_train_epochs",
            "batch_size": "training.per_device_train_batch_size",
            "clip_grad_norm": "training.max_grad_norm",
            "log_every_n_steps": "training.logging_steps",
            "enable_activation_checkpointing": "training.gradient_checkpointing",
        }
    )
    steps = foreign.take("max_steps_per_epoch")
    epochs = next((c.value for c in foreign.choices if c.key.endswith("num_train_epochs")), 1)
    foreign.choose("training.max_steps", None if steps is None else int(steps) * int(epochs))
    dtype = foreign.take("dtype")
    known = {"bf16": "bfloat16", "fp32": "float32"}
    foreign.choose("training.dtype", known.get(dtype))
    if dtype is not None and dtype not in known:
        foreign.note(f"dtype: {dtype}: training.dtype is bfloat16 or float32")
    foreign.choose("training.seed", seed if isinstance(seed, int) else None)
    logger = dict(foreign.take("metric_logger") or {})
    if logger:
        foreign.choose("training.report_to", TRACKERS.get(_name(logger)))
    foreign.copy_same()
    foreign.fill(DEFAULTS)
    for name in QUIET:
        foreign.take(name)
    foreign.refuse(REFUSED)


def _model(foreign: Foreign) -> None:
    """Take over the base model, and the adapter that the model's builder has."""
    model, files = dict(foreign.take("model")), dict(foreign.take("checkpointer") or {})
    folder = files.get("checkpoint_dir")
    if folder is not None:
        foreign.values["checkpoint_dir"] = str(folder)
        foreign.base("checkpoint_dir", "")
    if files.get("adapter_checkpoint"):
        foreign.note(f"adapter_checkpoint: {NEW_ADAPTER}")
    builder = _name(model)
    if "lora" not in builder and "dora" not in builder:
        foreign.choose("training.finetuning_type", "full")
        return
    foreign.quantized(4 if "qlora" in builder or model.get("quantize_base") else None, True)
    targets = [TARGETS.get(name, name) for name in model.get("lora_attn_modules") or ()]
    targets += MLP if model.get("apply_lora_to_mlp") else ()
    foreign.choose("training.target_modules", targets or None)
    if model.get("apply_lora_to_output"):
        foreign.note("apply_lora_to_output: add lm_head to training.target_modules")
    names = {"lora_rank": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    for theirs, ours in names.items():
        foreign.choose(f"training.{ours}", model.get(theirs))
    foreign.fill({"r": 8, "lora_alpha": 16, "lora_dropout": 0.0})
    foreign.choose("training.use_dora", model.get("use_dora") or "dora" in builder or None)


def _optimizer(foreign: Foreign) -> None:
    optimizer = dict(foreign.take("optimizer") or {})
    name = _name(optimizer)
    if name in OPTIMIZERS:
        foreign.choose("training.optim", OPTIMIZERS[name])
    elif name:
        foreign.note(f"optimizer: {name}: the optimizer is AdamW")
    rate = optimizer.get("lr")
    foreign.choose("training.learning_rate", None if rate is None else float(rate))
    foreign.choose("training.weight_decay", float(optimizer.get("weight_decay", 0.01)))
    schedule = dict(foreign.take("lr_scheduler") or {})
    if not schedule:
        foreign.choose("training.lr_scheduler_type", "constant", "torchtune's, without a schedule.")
        return
    if _name(schedule) != SCHEDULE:
        foreign.note(f"lr_scheduler: {_name(schedule)}: cosine is used")
    foreign.choose("training.lr_scheduler_type", "cosine")
    foreign.choose("training.warmup_steps", schedule.get("num_warmup_steps"))


def _data(foreign: Foreign) -> None:
    tokenizer = dict(foreign.take("tokenizer") or {})
    length = tokenizer.get("max_seq_len")
    if length is not None:
        foreign.choose("training.max_length", length)
        foreign.note(
            "max_seq_len: torchtune cuts longer rows; here they are refused, or data.checks.length "
            "drops or cuts them"
        )
    else:
        foreign.note("max_seq_len: null: torchtune has no limit; here it is 2,048 tokens")
    if tokenizer.get("prompt_template"):
        foreign.note("prompt_template: the base model's own chat template is trained and served")
    given = foreign.take("dataset") or []
    entries = [dict(entry) for entry in (given if isinstance(given, list) else [given])]
    sources = [source for entry in entries if (source := _source(foreign, entry))]
    if len(sources) == 1:
        for key, value in sources[0].items():
            foreign.choose(f"data.{key}", value)
    elif sources:
        foreign.choose("data.sources", sources)
    tests = foreign.take("dataset_val")
    if tests and (held := _source(foreign, dict(tests))):
        foreign.choose("data.heldout_path", held["path"])
        foreign.choose("data.heldout_split", held.get("split"))
    foreign.take("batch_size_val", "run_val_every_n_steps")


def _source(foreign: Foreign, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return a data set as a source; None for a builder that is not known."""
    builder = _name(entry)
    entry.pop("_component_", None)
    path, files = entry.pop("source", None) or SETS.get(builder), entry.pop("data_files", None)
    if path is None:
        foreign.note(f"dataset: {builder}: name its file or its name on the Hub as data.path")
        return None
    if path in SOURCES and files:
        path = files if isinstance(files, str) else files[0]
    source: dict[str, Any] = {"path": foreign.data_path(str(path))}
    is_hub = source["path"].startswith("hf:")
    for theirs, ours in {"split": "split", "name": "config"}.items():
        value = entry.pop(theirs, None)
        if value is not None and is_hub and not (ours == "split" and "[" in str(value)):
            source[ours] = value
        elif "[" in str(value):
            foreign.note(f"split of {path}: {value}: is a slice; here every row is used")
    columns = _columns(builder, dict(entry.pop("column_map", None) or {}))
    for key, ours in {"conversation_column": "messages", "column": "text"}.items():
        theirs = entry.pop(key, None)
        if theirs not in (None, ours) and (ours, theirs) != ("messages", "conversations"):
            columns[ours] = theirs
    if columns:
        source["columns"] = columns
    foreign.choose("data.system_prompt", entry.pop("new_system_prompt", None))
    if (packed := entry.pop("packed", None)) is not None:
        foreign.choose("training.packing", packed)
    if entry.pop("train_on_input", builder in SETS):
        foreign.note(f"train_on_input of {path}: the loss is on answers only")
    if builder in SETS:
        foreign.note(
            f"{builder}: writes ### Instruction or the like; here the base model's chat template "
            "writes the prompt"
        )
    entry.pop("conversation_style", None)
    for key, value in entry.items():
        if value not in (None, False, "", [], {}):
            foreign.note(f"{key} of {path}: {value}: has no counterpart")
    return source


def _columns(builder: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return our names of columns and the file's."""
    names = {"instruct_dataset": {"input": "prompt", "output": "completion"}}.get(builder, {})
    pairs = {**{theirs: theirs for theirs in names}, **given}
    return {names.get(key, key): column for key, column in pairs.items()
            if names.get(key, key) != column}  # fmt: skip


def _name(component: Mapping[str, Any]) -> str:
    """Return the last word of a component's path."""
    return str(component.get("_component_", "")).rpartition(".")[2]


def _resolved(value: Any, values: Mapping[str, Any], depth: int = 0) -> Any:
    """Return a value with OmegaConf's `${key}` replaced by the value of the key."""
    if isinstance(value, dict):
        return {key: _resolved(entry, values, depth) for key, entry in value.items()}
    if isinstance(value, list):
        return [_resolved(entry, values, depth) for entry in value]
    if not isinstance(value, str) or depth > 5:
        return value

    def found(match: re.Match[str]) -> str:
        at: Any = values
        for step in match[1].split("."):
            at = at.get(step) if isinstance(at, Mapping) else None
        return match[0] if at is None else str(at)

    new = re.sub(r"\$\{([\w.]+)\}", found, value)
    return value if new == value else _resolved(new, values, depth + 1)
