"""Axolotl's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneline.pipeline.foreign.reading import NEW_ADAPTER, SEVERAL_PROCESSES, Foreign

TYPES = {
    "alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": None, "completion": "text",
    "chatml": None, "llama3": None, "input_output": None,
}  # fmt: skip
"""Types of data sets, and our shape; None lets the columns choose."""
INSTRUCTIONS = ("alpaca", "gpteacher", "reflection", "explainchoice", "concisechoice", "jeopardy")
"""Types whose prompt is not a chat."""
FORMATS = ("json", "csv", "parquet")
FIELDS = {
    "field_instruction": "instruction", "field_input": "input", "field_output": "output",
    "field_system": "system", "field_tools": "tools", "field_prompt": "prompt",
    "field_chosen": "chosen", "field_rejected": "rejected", "field_completion": "completion",
    "field_label": "label", "field": "text",
}  # fmt: skip
USUAL = {
    "roles_to_train": (["assistant"], ["gpt"]), "train_on_eos": ("turn",),
    "message_field_training": ("train", "training", "weight"),
}  # fmt: skip
"""Options of a data set, and the values that say what is so here."""
REFUSED = {
    "train_on_inputs": "the loss is on answers only",
    "chat_template": "the base model's own chat template is trained and served",
    "special_tokens": "the base model's tokenizer is used as it is",
    "tokens": "the base model's tokenizer is used as it is",
    "fsdp": SEVERAL_PROCESSES,
    "fsdp_config": SEVERAL_PROCESSES,
    "neftune_noise_alpha": "no noise is added to embeddings",
    "plugins": "plugins of Axolotl do not run here",
    "lora_model_dir": NEW_ADAPTER,
    "unfrozen_parameters": "an adapter or all weights are trained",
    "evals_per_epoch": "set training.eval_steps",
    "saves_per_epoch": "set training.save_steps",
}
DEFAULTS = {
    "num_train_epochs": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 1,
    "max_length": 512,
}  # fmt: skip
"""Values that Axolotl uses without the key, if ours is another."""
PREFERENCES = {
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "argilla": {"prompt": "instruction", "chosen": "chosen_response",
                "rejected": "rejected_response"},
}  # fmt: skip
"""Columns of preference types such as `chatml.intel`, by the word after the dot."""
QUIET = (
    "model_type", "tokenizer_type", "strict", "dataset_prepared_path", "pad_to_sequence_len",
    "tf32", "eval_sample_packing", "is_llama_derived_model", "is_mistral_derived_model",
    "flash_attention", "lora_fan_in_fan_out", "auto_resume_from_checkpoints",
    "debug", "local_rank", "xformers_attention", "sdp_attention", "low_cpu_mem_usage",
)  # fmt: skip
"""Keys that choose nothing about the result, or what is always so here."""


def is_axolotl(values: Mapping[str, Any]) -> bool:
    """Return whether keys are those of Axolotl."""
    return "base_model" in values and isinstance(values.get("datasets"), list)


def read_axolotl(foreign: Foreign) -> None:
    """Take over the keys of an Axolotl configuration."""
    foreign.base("base_model", "revision_of_model")
    _data(foreign)
    adapter = foreign.take("adapter")
    if adapter is None:
        foreign.choose("training.finetuning_type", "full")
    elif adapter not in ("lora", "qlora"):
        foreign.note(f"adapter: {adapter}: a LoRA adapter is trained")
    four, eight = foreign.take("load_in_4bit"), foreign.take("load_in_8bit")
    bits = 4 if four or adapter == "qlora" else 8 if eight else None
    foreign.quantized(bits, is_adapter=adapter is not None)
    foreign.copy(
        {
            "lora_r": "training.r",
            "peft_use_rslora": "training.use_rslora",
            "peft_use_dora": "training.use_dora",
            "lora_modules_to_save": "training.modules_to_save",
            "sequence_len": "training.max_length",
            "sample_packing": "training.packing",
            "micro_batch_size": "training.per_device_train_batch_size",
            "num_epochs": "training.num_train_epochs",
            "eval_steps": "training.eval_steps",
            "save_steps": "training.save_steps",
        }
    )
    patience = foreign.take("early_stopping_patience")
    foreign.choose("training.early_stopping_patience", patience)
    foreign.choose("training.load_best_model_at_end", True if patience is not None else None)
    targets = foreign.take("lora_target_modules")
    linear = foreign.take("lora_target_linear")
    foreign.choose("training.target_modules", targets or ("all-linear" if linear else None))
    ratio = foreign.take("warmup_ratio")
    if "warmup_steps" not in foreign.values:
        foreign.choose("training.warmup_steps", ratio)
    if foreign.take("group_by_length") is False:
        foreign.choose("training.train_sampling_strategy", "random")
    if foreign.values.get("bf16") in ("auto", "full"):
        foreign.values["bf16"] = None if foreign.values["bf16"] == "auto" else True
    foreign.dtype()
    foreign.optimizer("optimizer")
    foreign.scheduler("lr_scheduler")
    foreign.copy_same()
    _method(foreign)
    foreign.fill(DEFAULTS)
    chosen = {choice.key for choice in foreign.choices}
    if "training.max_length" in chosen:
        foreign.choose("data.checks.length", "fix", "Axolotl drops rows over sequence_len.")
    for name in QUIET:
        foreign.take(name)
    _trackers(foreign)
    foreign.refuse(REFUSED)


def _trackers(foreign: Foreign) -> None:
    """Take over the trackers that Axolotl chooses by keys of their own."""
    used = {
        "wandb": foreign.take("use_wandb") or foreign.values.get("wandb_project"),
        "mlflow": foreign.take("use_mlflow") or foreign.values.get("mlflow_tracking_uri"),
        "tensorboard": foreign.take("use_tensorboard"),
    }
    if foreign.values.get("wandb_mode") == "disabled":
        used["wandb"] = None
    chosen = [name for name, is_used in used.items() if is_used]
    foreign.values.setdefault("report_to", chosen or None)
    foreign.trackers()
    for name in [one for one in foreign.values if str(one).startswith(("wandb_", "mlflow_"))]:
        value = foreign.take(name)
        if value not in (None, False, "", [], {}):
            foreign.note(f"a tracker's own setting: export {name.upper()}={value}")


def _data(foreign: Foreign) -> None:
    entries = [one for entry in foreign.take("datasets") for one in _files(dict(entry))]
    sources = [_source(foreign, entry) for entry in entries]
    if len(sources) == 1:
        for name, value in sources[0].items():
            foreign.choose(f"data.{name}", value)
    else:
        foreign.choose("data.sources", sources)
    tests = foreign.take("test_datasets")
    share = foreign.take("val_set_size")
    if tests:
        held = _source(foreign, dict(tests[0]))
        foreign.choose("data.heldout_path", held["path"])
        foreign.choose("data.heldout_split", held.get("split"))
        if len(tests) > 1:
            foreign.note(f"test_datasets: the first of {len(tests)} is used")
    elif isinstance(share, float) and 0 < share < 1:
        foreign.choose("data.heldout_fraction", share)
    elif share:
        foreign.note(
            f"val_set_size: {share}: is a number of rows; a tenth of the prompts is held out"
        )
    else:
        foreign.note("val_set_size: 0: a tenth of the prompts is held out; every proof needs some")


def _files(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an entry of files without a folder as one entry for each of its files."""
    files = entry.get("data_files")
    if not isinstance(files, list) or entry.get("path") not in (*FORMATS, "", None):
        return [entry]
    return [{**entry, "data_files": file} for file in files]


def _source(foreign: Foreign, entry: dict[str, Any]) -> dict[str, Any]:
    """Return one data set as a source."""
    files = entry.pop("data_files", None)
    files = [files] if isinstance(files, str) else files or []
    path = str(entry.pop("path", ""))
    if files and path in (*FORMATS, ""):
        path = files[0]
    elif files:
        foreign.note(f"data_files of {path}: the card of the data set chooses its files")
    source: dict[str, Any] = {"path": foreign.data_path(path)}
    for theirs, ours in {"split": "split", "name": "config", "revision": "revision"}.items():
        if (value := entry.pop(theirs, None)) is not None and (
            ours != "split" or source["path"].startswith("hf:")
        ):
            source[ours] = value
    kind = entry.pop("type", None)
    fields = {**entry, **kind} if isinstance(kind, dict) else entry
    columns = {ours: fields.pop(theirs) for theirs, ours in FIELDS.items() if theirs in fields}
    if (messages := fields.pop("field_messages", None)) not in (None, "messages", "conversations"):
        columns["messages"] = messages
    if columns:
        source["columns"] = columns
    if isinstance(kind, str):
        name, _, kind_of_pair = kind.partition(":")[0].partition(".")
        if pair := PREFERENCES.get(kind_of_pair):
            source["columns"] = {**pair, **columns}
        if name not in TYPES:
            foreign.note(f"type: {kind} of {path}: the columns choose the shape")
        elif TYPES[name]:
            source["shape"] = TYPES[name]
        if name in INSTRUCTIONS:
            foreign.note(
                f"type: {kind} of {path}: writes ### Instruction or the like; here the base "
                "model's chat template writes the prompt"
            )
    if (repeats := fields.pop("repeats", None)) is not None:
        source["weight"] = float(repeats)
    for name in ("ds_type", "conversation", "roles", "field_system"):
        fields.pop(name, None)
    for name, usual in USUAL.items():
        if fields.get(name) in usual:
            del fields[name]
    mapping = fields.pop("message_property_mappings", None) or {}
    if set(mapping.values()) - {"role", "content", "from", "value"}:
        foreign.note(
            f"message_property_mappings of {path}: known keys are role, content, from, value"
        )
    for name, value in fields.items():
        if value not in (None, False, ""):
            foreign.note(f"{name} of {path}: {value}: has no counterpart")
    return source


def _method(foreign: Foreign) -> None:
    kind = foreign.take("rl")
    beta = foreign.take("dpo_beta", "rl_beta", "orpo_alpha")
    known = {"dpo": "dpo", "ipo": "dpo", "orpo": "orpo", "kto": "kto"}
    if kind in known:
        foreign.choose("training.method.type", known[kind])
        foreign.choose("training.method.beta", beta)
        if kind == "ipo":
            foreign.choose("training.method.loss_type", ["ipo"])
        good, bad = foreign.take("kto_desirable_weight"), foreign.take("kto_undesirable_weight")
        if kind == "kto":
            foreign.choose("training.method.desirable_weight", good)
            foreign.choose("training.method.undesirable_weight", bad)
    elif kind:
        foreign.note(f"rl: {kind}: known are dpo, ipo, orpo and kto; sft is used")
