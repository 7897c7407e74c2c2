"""The state of a configuration that is being read, and keys that several trainers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from training.config.adapter import AdapterConfig
from training.config.tracking import TrackerName
from training.config.trainer import Optimizer, Scheduler
from tuneline.core.shorten import shorten
from tuneline.pipeline.choices import Choice, relative_path

OPTIMIZERS = {
    **{name: name for name in get_args(Optimizer)},
    "adamw_bnb_8bit": "adamw_8bit", "adamw_hf": "adamw_torch", "adamw": "adamw_torch",
}  # fmt: skip
"""Names of optimizers, and ours."""
SCHEDULERS = get_args(Scheduler)
TRACKERS = get_args(TrackerName)
NEW_ADAPTER = (
    "training starts with a new adapter; merge the old one first, by tuneline export merge --base "
    "MODEL --adapter DIR --out NEW, and set base_model: NEW"
)
SEVERAL_PROCESSES = (
    "set training.launch for several processes, such as {processes: 2, strategy: fsdp2}"
)
SAME = (
    "learning_rate", "weight_decay", "max_grad_norm", "seed", "warmup_steps", "lr_scheduler_kwargs",
    "gradient_accumulation_steps", "gradient_checkpointing", "logging_steps", "lora_alpha",
    "lora_dropout", "num_train_epochs", "per_device_train_batch_size", "packing", "max_length",
    "save_total_limit", "dataloader_num_workers", "max_steps", "adam_beta1", "adam_beta2",
    "adam_epsilon",
)  # fmt: skip
"""Keys of our section `training` that other trainers have under the same name."""
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".zst")
WITHOUT_EFFECT = {
    "output_dir": "artifacts go to runs/<name>",
    "overwrite_output_dir": "an artifact is written once",
    "save_strategy": "training.save_steps chooses checkpoints",
    "eval_strategy": "held-out losses are computed at the end of each epoch, or by eval_steps",
    "fp16": "training.dtype is bfloat16 or float32",
    "ddp_timeout": "set training.launch.timeout_s",
    "deepspeed": SEVERAL_PROCESSES,
    "trust_remote_code": "no code of a model folder is run",
    "resume_from_checkpoint": "an interrupted run continues by itself",
    "push_to_hub": "tuneline push publishes a model",
    "hub_model_id": "tuneline push publishes a model",
    "preprocessing_num_workers": "rows are rendered before training",
    "overwrite_cache": "a dataset is made again only if its data change",
    "flash_attn": "training.attn_implementation chooses the attention",
    "attn_implementation": "training.attn_implementation chooses the attention",
    "max_samples": "every row is used; give a smaller file",
}
"""Keys of several trainers that have no counterpart here, each with the reason."""


@dataclass
class Foreign:
    """A configuration that is being read: keys are taken out of `values` one after the other."""

    source: Path
    out: Path
    values: dict[str, Any]
    command: str = ""
    """The command of a script, such as `dpo`; a configuration file names none."""
    choices: list[Choice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, *names: str) -> Any:
        """Return the value of the first name that is given, and take all the names out."""
        found = [self.values.pop(name) for name in names if name in self.values]
        return next((value for value in found if value is not None), None)

    def choose(self, key: str, value: Any, reason: str = "") -> None:
        """Set a key of ours, unless the value is not given."""
        if value is not None:
            self.choices.append(Choice(key, value, reason))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def copy(self, names: Mapping[str, str]) -> None:
        """Take over keys that only have another name here; ours by theirs."""
        for theirs, ours in names.items():
            value = self.take(theirs)
            if isinstance(value, str) and ours in ("training.learning_rate",):
                value = float(value)
            self.choose(ours, value)

    def copy_same(self) -> None:
        """Take over the keys of training that have the same name.

        Without a number of steps, transformers' own `max_steps` is -1.
        """
        steps = self.values.get("max_steps")
        if isinstance(steps, int) and steps <= 0:
            self.take("max_steps")
        self.copy({name: f"training.{name}" for name in SAME if name in self.values})

    def scheduler(self, name: str) -> None:
        value = self.take(name)
        if value in SCHEDULERS:
            self.choose("training.lr_scheduler_type", value)
        elif value is not None:
            self.note(f"{name}: {value}: known are {', '.join(SCHEDULERS)}; cosine is used")
            self.choose("training.lr_scheduler_type", "cosine")

    def optimizer(self, name: str) -> None:
        value = self.take(name)
        if value in OPTIMIZERS:
            self.choose("training.optim", OPTIMIZERS[value])
        elif value is not None:
            self.note(f"{name}: {value}: the optimizer is AdamW")

    def dtype(self, name: str = "bf16") -> None:
        value = self.take(name)
        if value is True:
            self.choose("training.dtype", "bfloat16")
        elif value is False:
            self.choose("training.dtype", "float32")

    def fill(self, defaults: Mapping[str, Any]) -> None:
        """Set the keys that the configuration does not have to what the trainer uses then.

        Ours are others: a rank, a learning rate or a number of epochs would change silently.
        """
        chosen = {choice.key: choice.value for choice in self.choices}
        is_full = chosen.get("training.finetuning_type") == "full"
        for name, value in defaults.items():
            key = f"training.{name}"
            if key not in chosen and not (is_full and name in AdapterConfig.model_fields):
                self.choose(key, value, "Not in the configuration: the trainer's default.")

    def quantized(self, bits: int | None, is_adapter: bool) -> None:
        """Take over a base model in 4 bits; in other bits, or trained whole, it has none here."""
        if bits == 4 and is_adapter:
            self.choose("training.load_in_4bit", True)
        elif bits:
            self.note(
                f"a base model in {bits} bits: training.load_in_4bit trains an adapter on a base "
                "in 4 bits; here the base is in the precision of training.dtype"
            )

    def trackers(self) -> None:
        """Take over the trackers that are known here."""
        value = self.take("report_to")
        names = [value] if isinstance(value, str) else list(value or [])
        if names == ["none"]:
            self.choose("training.report_to", [])
        elif known := [name for name in names if name in TRACKERS]:
            self.choose("training.report_to", known)
        for name in names:
            if name not in (*TRACKERS, "none"):
                self.note(f"report_to: {name}: known are {', '.join(TRACKERS)}")

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Name the keys that have no counterpart, with the reason of each."""
        for name, reason in reasons.items():
            value = self.take(name)
            if value not in (None, False, "", [], {}):
                self.note(f"{name}: {_short(value)}: {reason}")

    def refuse_rest(self) -> None:
        """Name every key that nothing has taken."""
        self.refuse(WITHOUT_EFFECT)
        for name in list(self.values):
            value = self.values.pop(name)
            if value not in (None, "", [], {}):
                self.note(f"{name}: {_short(value)}: has no counterpart")

    def data_path(self, path: str) -> str:
        """Return a path or a Hub name as `data.path`; paths are relative to the current folder."""
        if Path(path).exists() or path.startswith((".", "/")) or Path(path).suffix in FILES:
            return relative_path(path, self.out)
        return f"hf:{path}"

    def base(self, name: str, revision: str) -> None:
        """Take over the base model and its revision."""
        base = self.take(name)
        if base is not None:
            self.choose("base_model", relative_path(base, self.out) if _is_local(base) else base)
        self.choose("base_revision", self.take(revision))


def _is_local(path: Any) -> bool:
    return isinstance(path, str) and (path.startswith((".", "/")) or Path(path).is_dir())


def _short(value: Any) -> str:
    return shorten(str(value), 50)
