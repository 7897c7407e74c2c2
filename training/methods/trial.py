"""TRL's own refusals, before a base model is loaded: some options are checked by trainers only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from training.adapters.lora import add_lora
from training.config import TrainingConfig
from training.config.method import DistillationConfig
from training.loop.arguments import trainer_arguments
from training.methods import find_method

TINY = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "num_labels": 1,
}  # fmt: skip

NETWORKS = {
    "CAUSAL_LM": LlamaForCausalLM, "SEQ_CLS": LlamaForSequenceClassification,
    "FEATURE_EXTRACTION": LlamaModel,
}  # fmt: skip

OF_SEVERAL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""The variables by which a trainer would wait for other processes."""


def require_trainer(config: TrainingConfig, tokenizer: Any, examples: Sequence[Any]) -> None:
    """Make the method's trainer on a network of one small layer, and forget it.

    Raises:
        ConfigError: TRL refuses the options.
    """
    method, is_full = find_method(config.method), config.finetuning_type == "full"
    if not examples or (is_full and config.method.type == "grpo"):
        return  # TRL would load the reference from the base's folder
    largest = max(max(ids) for example in examples for ids in method.sequences(example))
    network = LlamaConfig(vocab_size=max(len(tokenizer), largest + 1), **TINY)
    model = NETWORKS[method.task_type](network)
    if not is_full:
        model = add_lora(TrainingConfig(r=1), model, method.task_type)
    with _one_process(), TemporaryDirectory(prefix="tuneline-trial-") as folder:
        if isinstance(config.method, DistillationConfig):
            network_dir = Path(folder) / "teacher"
            LlamaForCausalLM(network).save_pretrained(network_dir)
            config = config.model_copy(update={"method": config.method.taught_by(network_dir)})
        arguments = trainer_arguments(config, Path(folder), resumed=True)
        arguments |= {"use_liger_kernel": False, "optim": "adamw_torch"}
        method.trainer(config, model, tokenizer, arguments, examples, examples)


@contextmanager
def _one_process() -> Iterator[None]:
    """Hide that this process is one of several: a check of one host waits for no other."""
    kept = {name: os.environ.pop(name) for name in OF_SEVERAL if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
