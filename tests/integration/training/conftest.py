"""One small line, made once: a random base, rows with one answer, an adapter that learned it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.training.tiny import color_rows, make_base
from tests.shared import made_once
from training.config import DataConfig, TrainingConfig
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.models.source import ModelSource, resolve_model

ANSWER = "Color: red\nSize: small"
FOREIGN_TOKENIZER_FILES = ("spiece.model", "tekken.json")

# One file of settings for the run here and the runs in child processes. The held-out rows are one
# batch, so that the Trainer's held-out loss is the mean over tokens.
SETTINGS = {
    "num_train_epochs": 6,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "lora_dropout": 0.1,
    "logging_steps": 1,
    "save_steps": 6,  # the steps of an epoch: resuming at its end is the hardest case
    "gradient_checkpointing": False,
    "max_length": 128,
    "report_to": [],
}


@dataclass(frozen=True)
class Line:
    folder: Path
    base: ModelSource
    dataset: Artifact
    adapter: Artifact

    @property
    def config(self) -> TrainingConfig:
        return TrainingConfig.model_validate(SETTINGS)


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    import torch

    # These models are so small that a second thread only waits.
    torch.set_num_threads(1)
    folder = made_once(tmp_path_factory, "line", _make_line)
    dataset, adapter = (open_artifact(folder / name) for name in ("dataset", "adapter"))
    return Line(folder, resolve_model("base", relative_to=folder), dataset, adapter)


def _make_line(folder: Path) -> None:
    from training.data.prepare import prepare_dataset
    from training.train import train_adapter

    base_dir = make_base(folder / "base")
    # Sampling defaults that greedy decoding must not take up.
    generation = json.loads((base_dir / "generation_config.json").read_text())
    generation |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0}
    (base_dir / "generation_config.json").write_text(json.dumps(generation))
    for name in FOREIGN_TOKENIZER_FILES:
        (base_dir / name).write_bytes(b"a tokenizer of another library\n")
    rows = [{**row, "output": ANSWER} for row in color_rows(100)]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = prepare_dataset(
        DataConfig(path="rows.jsonl"), relative_to=folder, out=folder / "dataset"
    )
    base = resolve_model("base", relative_to=folder)
    train_adapter(TrainingConfig.model_validate(SETTINGS), dataset, base, folder / "adapter")
