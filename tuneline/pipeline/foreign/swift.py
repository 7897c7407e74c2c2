"""ms-swift's YAML, and the options of its command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneline.pipeline.foreign.reading import NEW_ADAPTER, Foreign

METHODS = {"dpo": "dpo", "orpo": "orpo", "kto": "kto", "rm": "reward"}
COLUMNS = {"query": "prompt", "response": "completion"}
"""Names of ms-swift's columns, and ours; other names are the same."""
REFUSED = {
    "template": "the base model's own chat template is trained and served",
    "agent_template": "the base model's own chat template writes the calls",
    "adapters": NEW_ADAPTER,
    "padding_free": "batches have rows of like length",
    "streaming": "rows are read one at a time",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "custom_register_path": "no code of other trainers is run",
    "external_plugins": "no code of other trainers is run",
    "attn_impl": "training.attn_implementation chooses the attention",
    "response_prefix": "the chat template writes the generation prompt",
    "new_special_tokens": "the base model's tokenizer is used as it is",
    "interleave_prob": "sources are concatenated; set weight in data.sources",
    "sequence_parallel_size": "a row is on one device",
    "use_chat_template": "the base model's own chat template is trained and served",
}
DEFAULTS = {
    "num_train_epochs": 3, "per_device_train_batch_size": 1, "lr_scheduler_type": "cosine",
    "warmup_steps": 0, "weight_decay": 0.1, "adam_beta2": 0.95, "r": 8, "lora_alpha": 32,
    "lora_dropout": 0.05, "target_modules": "all-linear",
}  # fmt: skip
"""Values that ms-swift uses without the key."""
TOTAL_BATCH = 16
"""Rows of a step to which ms-swift accumulates by itself."""
QUIET = (
    "model_type", "dataset_num_proc", "load_from_cache_file", "per_device_eval_batch_size",
    "logging_dir", "lazy_tokenize", "model_name", "model_author", "strict", "use_hf",
    "dataset_shuffle", "create_checkpoint_symlink", "tuner_backend", "task_type",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype",
    "gradient_checkpointing_kwargs", "add_version", "remove_unused_columns",
)  # fmt: skip
"""Keys that choose nothing about the result, or what is always so here."""


def is_swift(values: Mapping[str, Any]) -> bool:
    """Return whether keys are those of ms-swift."""
    return isinstance(values.get("model"), str) and isinstance(values.get("dataset"), str | list)


def read_swift(foreign: Foreign) -> None:
    """Take over the keys of an ms-swift configuration."""
    uses_hub = not foreign.values.get("use_hf")
    foreign.base("model", "model_revision")
    if uses_hub:
        foreign.note(
            "use_hf: is not set, and ms-swift takes names from ModelScope; here they are names of "
            "the Hugging Face Hub"
        )
    _data(foreign)
    kind = foreign.take("tuner_type", "train_type")
    if kind == "full":
        foreign.choose("training.finetuning_type", "full")
    elif kind not in (None, "lora"):
        foreign.note(f"train_type: {kind}: a LoRA adapter is trained")
    foreign.copy(
        {
            "lora_rank": "training.r",
            "use_rslora": "training.use_rslora",
            "use_dora": "training.use_dora",
            "modules_to_save": "training.modules_to_save",
            "use_liger_kernel": "training.use_liger_kernel",
            "eval_steps": "training.eval_steps",
            "save_steps": "training.save_steps",
        }
    )
    targets = foreign.take("target_modules")
    targets = targets[0] if targets == ["all-linear"] else targets
    is_name = isinstance(targets, str) and targets != "all-linear"
    foreign.choose("training.target_modules", [targets] if is_name else targets)
    ratio = foreign.take("warmup_ratio")
    if "warmup_steps" not in foreign.values:
        foreign.choose("training.warmup_steps", ratio)
    dtype = foreign.take("torch_dtype", "dtype")
    foreign.choose("training.dtype", dtype if dtype in ("float32", "bfloat16") else None)
    foreign.take("bf16") if dtype else foreign.dtype()
    bits = foreign.take("quant_bits")
    foreign.take("quant_method")
    foreign.quantized(None if bits is None else int(bits), is_adapter=kind != "full")
    foreign.trackers()
    foreign.optimizer("optim")
    foreign.scheduler("lr_scheduler_type")
    _lengths(foreign)
    foreign.copy_same()
    _method(foreign)
    _fill(foreign, is_full=kind == "full")
    for name in QUIET:
        foreign.take(name)
    foreign.refuse(REFUSED)


def _lengths(foreign: Foreign) -> None:
    """Say what becomes of long rows."""
    strategy = foreign.take("truncation_strategy") or "delete"
    if "max_length" not in foreign.values:
        foreign.note(
            "max_length: is not set, and ms-swift takes the context of the model; here it is 2,048"
        )
    if strategy == "delete":
        foreign.choose("data.checks.length", "fix", "ms-swift drops rows over max_length.")
    elif strategy == "left":
        foreign.choose("data.checks.length", {"action": "fix", "by": "cut_left"})
    else:
        foreign.note(
            f"truncation_strategy: {strategy}: no answer is cut; rows over max_length are refused, "
            "or data.checks.length drops or cuts them on the left"
        )


def _method(foreign: Foreign) -> None:
    kind, beta, losses = (foreign.take(name) for name in ("rlhf_type", "beta", "loss_type"))
    scale = foreign.take("loss_scale")
    if kind in METHODS:
        foreign.choose("training.method.type", METHODS[kind])
        if kind != "rm":
            foreign.choose("training.method.beta", beta)
        if kind == "dpo" and losses is not None:
            foreign.choose(
                "training.method.loss_type", losses if isinstance(losses, list) else [losses]
            )
        if kind == "kto":
            names = ("desirable_weight", "undesirable_weight")
            foreign.copy({name: f"training.method.{name}" for name in names})
    elif kind is not None:
        foreign.note(f"rlhf_type: {kind}: known are {', '.join(METHODS)}; set training.method")
    elif scale in ("last_round", "last_round_with_ignore_empty_think"):
        foreign.choose("training.train_on", "last_turn")
    if scale not in (None, "default", "last_round"):
        foreign.note(f"loss_scale: {scale}: every token of an answer counts once, others do not")


def _fill(foreign: Foreign, *, is_full: bool) -> None:
    foreign.fill({**DEFAULTS, "learning_rate": 1e-5 if is_full else 1e-4})
    chosen = {choice.key: choice.value for choice in foreign.choices}
    rows = chosen["training.per_device_train_batch_size"]
    foreign.fill({"gradient_accumulation_steps": max(-(-TOTAL_BATCH // int(rows)), 1)})


def _data(foreign: Foreign) -> None:
    columns = foreign.take("columns") or {}
    names = {COLUMNS.get(str(ours), str(ours)): str(theirs) for theirs, ours in columns.items()}
    sources = [_source(foreign, entry, names) for entry in _listed(foreign.take("dataset"))]
    if len(sources) == 1:
        for key, value in sources[0].items():
            foreign.choose(f"data.{key}", value)
    elif sources:
        foreign.choose("data.sources", sources)
    system = foreign.take("system")
    if isinstance(system, str) and system.endswith(".txt") and Path(system).is_file():
        system = Path(system).read_text(encoding="utf-8").strip()
    foreign.choose("data.system_prompt", system)
    foreign.choose("data.seed", foreign.take("data_seed"))
    held = _listed(foreign.take("val_dataset"))
    share = foreign.take("split_dataset_ratio")
    if held:
        foreign.choose("data.heldout_path", _source(foreign, held[0], {})["path"])
        if len(held) > 1:
            foreign.note(f"val_dataset: the first of {len(held)} is used")
    elif share:
        foreign.choose("data.heldout_fraction", float(share))
    else:
        foreign.note(
            "split_dataset_ratio: 0: a tenth of the prompts is held out; every proof needs some"
        )


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value] if value else [])]


def _source(foreign: Foreign, entry: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a data set, `name:subset#rows`, as a source."""
    name, _, rows = entry.partition("#")
    subset = ""
    if not Path(name).exists():
        name, _, subset = name.partition(":")
    source: dict[str, Any] = {"path": foreign.data_path(name)}
    if subset and source["path"].startswith("hf:"):
        source["config"] = subset
    if rows:
        foreign.note(f"{entry}: {rows} rows are drawn by ms-swift; here every row is used")
    return source | ({"columns": dict(columns)} if columns else {})
