"""A base model without a chat template, trained and served with the Alpaca template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.training.conftest import SETTINGS
from tests.integration.training.tiny import color_rows, make_base
from training.check import check_data
from training.config import DataConfig, TrainingConfig
from training.data.prepare import prepare_dataset
from training.estimates.duration import time_lines
from training.estimates.probe import probe_training
from training.train import train_adapter
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.models.source import ModelSource, resolve_model
from tuneline.models.tokenizer import load_tokenizer

DATA = DataConfig.model_validate({"path": "rows.jsonl", "chat_template": "alpaca"})
LONG = {**SETTINGS, "max_length": 256}
CONFIG = TrainingConfig.model_validate({**LONG, "num_train_epochs": 1})
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nWhich color?\n\n### Response:\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alpaca")
    make_base(folder / "plain", chat_template=None)
    make_base(folder / "chat")
    rows = "".join(json.dumps(row) + "\n" for row in color_rows(48))
    (folder / "rows.jsonl").write_text(rows)
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Artifact:
    return prepare_dataset(DATA, relative_to=folder, out=folder / "dataset")


def _base(folder: Path, name: str = "plain") -> ModelSource:
    return resolve_model(name, relative_to=folder)


def test_the_trained_folder_renders_alpaca_prompts(
    folder: Path, dataset: Artifact, tmp_path: Path
) -> None:
    adapter = train_adapter(CONFIG, dataset, _base(folder), tmp_path / "adapter")
    served = load_tokenizer(adapter.path)
    asked = [{"role": "user", "content": "Which color?"}]
    text = served.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == PROMPT
    whole = [*asked, {"role": "assistant", "content": "Red"}]
    assert served.apply_chat_template(whole, tokenize=False) == f"{PROMPT}Red<|im_end|>"
    with_system = [{"role": "system", "content": "Answer in one word."}, *asked]
    text = served.apply_chat_template(with_system, tokenize=False)
    assert text == "Answer in one word.\n\n### Instruction:\nWhich color?"
    with pytest.raises(Exception, match="found the role tool"):
        served.apply_chat_template([*whole, {"role": "tool", "content": "x"}], tokenize=False)
    assert adapter.manifest.metrics["eval_loss"] < adapter.manifest.metrics["eval_loss_before"]


def test_the_template_changes_the_dataset(folder: Path, dataset: Artifact, tmp_path: Path) -> None:
    plain = DataConfig.model_validate({"path": "rows.jsonl"})
    other = prepare_dataset(plain, relative_to=folder, out=tmp_path / "dataset")
    assert other.digest != dataset.digest


def test_a_base_with_a_template_of_its_own_keeps_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.chat_template: alpaca: base model .* its own"):
        check_data(CONFIG, _base(folder, "chat"), DATA, folder)
    found = check_data(CONFIG, _base(folder), DATA, folder)
    assert found["data rows.jsonl"] == "48 rows"


def test_a_base_without_a_template_gets_the_hint(folder: Path) -> None:
    plain = DataConfig.model_validate({"path": "rows.jsonl"})
    with pytest.raises(ArtifactError, match=r"no chat template") as caught:
        check_data(CONFIG, _base(folder), plain, folder)
    assert "data.chat_template=alpaca" in str(caught.value.hint)


def test_a_probe_counts_the_steps_of_the_whole_training(folder: Path, dataset: Artifact) -> None:
    config = TrainingConfig.model_validate({**LONG, "num_train_epochs": 50})
    before = {path.name for path in folder.iterdir()}
    found = probe_training(config, dataset, _base(folder))
    num_train = dataset.manifest.metrics["num_train"]
    assert found["num_steps"] == 50 * -(-num_train // 16)
    assert found["num_probed_steps"] == 10
    assert found["num_heldout_measurements"] == 51
    assert 0 < found["step_s"] < 60 and found["heldout_s"] > 0
    whole_s = found["num_steps"] * found["step_s"] + 51 * found["heldout_s"]
    assert found["total_s"] == pytest.approx(whole_s)
    assert "training takes about" in time_lines(found)[0]
    assert {path.name for path in folder.iterdir()} == before
