"""The YAML of TRL's command line, and the options of its command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneline.pipeline.foreign.reading import Foreign

REFUSED = {
    "eos_token": "set training.eos_token",
    "chat_template_path": "the base model's own chat template is trained and served",
    "dataset_streaming": "rows are read one at a time",
    "packing_strategy": "whole rows are packed; none is cut",
    "padding_free": "batches have rows of like length",
    "use_vllm": "answers of GRPO are generated in this process",
}
LEARNING_RATES = {"sft": 2e-5, "reward": 1e-4}
"""Learning rates of TRL's methods; 1e-6 of those that compare answers."""
DEFAULTS = {
    "num_train_epochs": 3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear", "warmup_steps": 0, "max_length": 1024, "r": 16, "lora_alpha": 32,
    "lora_dropout": 0.05,
}  # fmt: skip
"""Values that TRL uses without the key."""
QUIET = (
    "do_eval", "per_device_eval_batch_size", "remove_unused_columns", "dataset_num_proc",
    "gradient_checkpointing_kwargs", "log_level", "bf16_full_eval", "ignore_bias_buffers",
)  # fmt: skip
"""Keys that choose nothing about the result."""
OF_A_DISTILLATION = (
    "teacher_model_name_or_path", "teacher_model_revision", "temperature", "max_completion_length",
)  # fmt: skip
"""Options that only the script of a distillation has, or that GRPO has too."""


def is_trl(values: Mapping[str, Any]) -> bool:
    """Return whether keys are those of TRL's scripts."""
    return "model_name_or_path" in values and bool({"dataset_name", "datasets"} & set(values))


def read_trl(foreign: Foreign) -> None:
    """Take over the keys of a TRL configuration."""
    foreign.base("model_name_or_path", "model_revision")
    _data(foreign)
    is_adapter = bool(foreign.take("use_peft"))
    if not is_adapter:
        foreign.choose("training.finetuning_type", "full")
    foreign.copy(
        {
            "lora_r": "training.r",
            "use_rslora": "training.use_rslora",
            "use_dora": "training.use_dora",
            "use_liger_kernel": "training.use_liger_kernel",
            "lora_modules_to_save": "training.modules_to_save",
            "eval_steps": "training.eval_steps",
            "save_steps": "training.save_steps",
        }
    )
    foreign.choose("training.target_modules", foreign.take("lora_target_modules"))
    ratio = foreign.take("warmup_ratio")
    if "warmup_steps" not in foreign.values:
        foreign.choose("training.warmup_steps", ratio)
    dtype = foreign.take("dtype", "torch_dtype")
    foreign.choose("training.dtype", dtype if dtype in ("float32", "bfloat16") else None)
    foreign.take("bf16") if dtype else foreign.dtype()
    four, eight = foreign.take("load_in_4bit"), foreign.take("load_in_8bit")
    foreign.quantized(4 if four else 8 if eight else None, is_adapter)
    foreign.trackers()
    foreign.take("bnb_4bit_quant_type", "use_bnb_nested_quant")
    foreign.optimizer("optim")
    foreign.scheduler("lr_scheduler_type")
    foreign.copy_same()
    _method(foreign)
    _losses(foreign)
    foreign.fill(DEFAULTS)
    if is_adapter and not any(c.key == "training.target_modules" for c in foreign.choices):
        foreign.note(
            "lora_target_modules: is not set, and PEFT chooses by the architecture, query and "
            "value in most; here every linear layer gets an adapter"
        )
    foreign.note(
        "max_length: TRL cuts longer rows; here they are refused, or data.checks.length drops or "
        "cuts them"
    )
    for name in QUIET:
        foreign.take(name)
    foreign.refuse(REFUSED)


def _method(foreign: Foreign) -> None:
    """Choose the method by options that only one of TRL's scripts has."""
    beta, losses = foreign.take("beta"), foreign.take("loss_type")
    rewards, generations = foreign.take("reward_funcs"), foreign.take("num_generations")
    script = foreign.command
    if rewards or generations or script in ("grpo", "rloo"):
        foreign.note(
            "reward_funcs, num_generations: GRPO needs reward functions as file.py:function; set "
            "training.method"
        )
    elif script == "distillation" or "teacher_model_name_or_path" in foreign.values:
        foreign.choose("training.method.type", "distillation")
        foreign.choose("training.method.beta", beta)
        foreign.copy({name: f"training.method.{name}" for name in OF_A_DISTILLATION})
    elif script == "kto" or "desirable_weight" in foreign.values or losses in ("kto", ["kto"]):
        foreign.choose("training.method.type", "kto")
        foreign.choose("training.method.beta", beta)
        foreign.copy(
            {name: f"training.method.{name}" for name in ("desirable_weight", "undesirable_weight")}
        )
    elif script in ("orpo", "reward"):
        foreign.choose("training.method.type", script)
        foreign.choose("training.method.beta", beta if script == "orpo" else None)
    elif script == "dpo" or (not script and (beta is not None or losses is not None)):
        reason = "" if script else "A beta or a loss_type is given."
        foreign.choose("training.method.type", "dpo", reason)
        foreign.choose("training.method.beta", beta)
        foreign.choose("training.method.loss_type", losses)


def _losses(foreign: Foreign) -> None:
    """Say which tokens TRL trains besides answers, and take over its learning rate."""
    chosen = {choice.key: choice.value for choice in foreign.choices}
    method = chosen.get("training.method.type", "sft")
    assistant, completion = (
        foreign.take("assistant_only_loss"),
        foreign.take("completion_only_loss"),
    )
    if method == "sft" and completion is True:
        foreign.choose("training.train_on", "last_turn", "completion_only_loss of TRL.")
    elif method == "sft":
        if assistant is not True:
            foreign.note(
                "assistant_only_loss: is not set, and TRL trains every token of messages, the "
                "user's too; here answers only"
            )
        if completion is False:
            foreign.note("completion_only_loss: false: TRL trains prompts too; here answers only")
        else:
            foreign.note(
                "completion_only_loss: is not set: of rows with prompt and completion, TRL trains "
                "the completion only, and here earlier answers in the prompt too; for the same, "
                "set training.train_on: last_turn"
            )
    if "training.method.type" not in chosen and not foreign.command:
        foreign.note(
            "a configuration of TRL does not name its script: sft is used; for trl dpo, kto, orpo "
            "or reward set training.method"
        )
    foreign.fill({"learning_rate": LEARNING_RATES.get(method, 1e-6)})


def _data(foreign: Foreign) -> None:
    name = foreign.take("dataset_name")
    train, test = foreign.take("dataset_train_split"), foreign.take("dataset_test_split")
    config = foreign.take("dataset_config")
    entries = foreign.take("datasets") or ([{"path": name, "name": config}] if name else [])
    sources = []
    for entry in entries:
        left = dict(entry)
        source: dict[str, Any] = {"path": foreign.data_path(str(left.pop("path")))}
        is_hub = source["path"].startswith("hf:")
        for theirs, ours in {"name": "config", "split": "split"}.items():
            if (value := left.pop(theirs, None)) is not None and is_hub:
                source[ours] = value
        for key, value in left.items():
            foreign.note(f"{key} of {source['path']}: {value}: has no counterpart")
        sources.append(source)
    if len(sources) == 1:
        for key, value in sources[0].items():
            foreign.choose(f"data.{key}", value)
        if sources[0]["path"].startswith("hf:"):
            foreign.choose("data.split", train if "split" not in sources[0] else None)
            foreign.choose("data.heldout_split", test)
    elif sources:
        foreign.choose("data.sources", sources)
    share = foreign.take("test_split_size")
    foreign.choose("data.heldout_fraction", share)
