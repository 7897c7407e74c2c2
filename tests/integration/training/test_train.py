from __future__ import annotations

import importlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.training.conftest import ANSWER, FOREIGN_TOKENIZER_FILES, Line
from tests.integration.training.tiny import CHATML, make_base
from training.config import TrainingConfig
from training.data.prepare import dataset_rows
from training.model import load_base, load_tuned, quiet_libraries
from training.train import train_adapter
from tuneline.core.artifact import Artifact, verify_artifact
from tuneline.core.dataset import HELDOUT_FILE
from tuneline.core.errors import ArtifactError, ConfigError, DataError
from tuneline.models.source import resolve_model
from tuneline.models.tokenizer import load_tokenizer

ONE_STEP = {"num_train_epochs": 0.1}


def _plain_peft(line: Line) -> tuple[Any, Any]:
    """Base and adapter as anyone loads them, without this project's code."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(line.base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(line.adapter.path)).eval()
    return model, AutoTokenizer.from_pretrained(line.adapter.path)


def _prompt_text(row: Any) -> str:
    """The ChatML of the fixture, written out by hand."""
    return f"<|im_start|>user\n{row.prompt[0]['content']}<|im_end|>\n<|im_start|>assistant\n"


def _points(adapter: Artifact) -> list[dict[str, float]]:
    lines = (adapter.path / "loss.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_loss_falls_and_every_step_is_logged(line: Line) -> None:
    points = _points(line.adapter)
    losses = [point["loss"] for point in points if "loss" in point]
    steps = line.adapter.manifest.metrics["num_steps"]
    assert [point["step"] for point in points] == list(range(steps + 1))
    assert len(losses) == steps == 36  # 90 rows, 16 at a time, six times
    assert losses[-1] < 0.1 * losses[0]
    assert line.adapter.manifest.metrics["eval_loss"] < 0.1 * points[0]["eval_loss"]


def test_the_artifact_holds_exactly_its_files_and_no_pickle(line: Line) -> None:
    verify_artifact(line.adapter)
    assert sorted(path.name for path in line.adapter.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "loss.jsonl",
        "loss.png",
        "manifest.json",
        "proof.json",
        "spiece.model",
        "tekken.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    # Nothing of the run is next to it either: no checkpoints, no partial directory, no lock.
    assert sorted(path.name for path in line.folder.glob(".*")) == []


def test_no_file_names_a_path_of_this_machine(line: Line) -> None:
    texts = [path for path in line.adapter.path.iterdir() if path.suffix in (".json", ".jsonl")]
    assert len(texts) == 8
    for path in texts:
        assert str(line.folder) not in path.read_text()
    config = json.loads((line.adapter.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == line.base.name


def test_the_served_files_are_the_bases(line: Line) -> None:
    base, adapter = line.base.path, line.adapter.path
    assert (adapter / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    for name in FOREIGN_TOKENIZER_FILES:
        assert (adapter / name).read_bytes() == (base / name).read_bytes()
    assert (adapter / "chat_template.jinja").read_text() == CHATML
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    generation = json.loads((adapter / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2]
    assert generation["repetition_penalty"] == 9.0


def test_metrics_are_complete(line: Line) -> None:
    metrics = line.adapter.manifest.metrics
    with_lora = 2 * (  # layers
        2 * 16 * 64 + 16 * (64 + 64) + 2 * 16 * (64 + 32) - 2 * 16 * 64 + 16 * (64 + 64)
        + 3 * 16 * (64 + 128)
    )  # fmt: skip
    assert metrics["num_trainable_parameters"] == with_lora
    assert metrics["trained_tokens_per_s"] > 0 and metrics["wall_s"] > 0
    assert metrics["peak_memory_bytes"] > 2**26
    assert metrics["dtype"] == "float32" and metrics["servable_as_adapter"] is True
    tokenizer = load_tokenizer(line.base.path)
    num_answer = len(tokenizer.encode(ANSWER, add_special_tokens=False)) + 1
    assert metrics["num_trained_tokens"] == 6 * 90 * num_answer


def test_plain_peft_gives_the_recorded_heldout_loss(line: Line) -> None:
    import torch

    model, tokenizer = _plain_peft(line)
    losses: list[float] = []
    rows = dataset_rows(line.dataset, HELDOUT_FILE)
    assert len(rows) == 10
    for row in rows:
        prompt = tokenizer.encode(_prompt_text(row), add_special_tokens=False)
        answer = tokenizer.encode(f"{row.answer}<|im_end|>", add_special_tokens=False)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        start = len(prompt) - 1
        losses += torch.nn.functional.cross_entropy(
            logits[start:-1], torch.tensor(answer), reduction="none"
        ).tolist()
    measured = sum(losses) / len(losses)
    assert measured == pytest.approx(line.adapter.manifest.metrics["eval_loss"], rel=1e-3)


def test_our_loading_gives_the_logits_of_plain_peft(line: Line) -> None:
    import torch

    plain, tokenizer = _plain_peft(line)
    ours = load_tuned(line.base, line.adapter, torch.float32)
    base = load_base(line.base, torch.float32)
    row = dataset_rows(line.dataset, HELDOUT_FILE)[0]
    ids = torch.tensor([tokenizer.encode(_prompt_text(row), add_special_tokens=False)])
    with torch.inference_mode():
        expected, found = plain(input_ids=ids).logits, ours(input_ids=ids).logits
        untrained = base(input_ids=ids).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(untrained, expected, atol=0.1)


def test_packed_rows_do_not_see_one_another(line: Line, tmp_path: Path) -> None:
    settings = {**line.config.model_dump(), **ONE_STEP, "packing": True}
    packed = train_adapter(TrainingConfig(**settings), line.dataset, line.base, tmp_path / "packed")
    # Before the first step the adapter does nothing, so both losses are of the same model.
    assert packed.manifest.metrics["eval_loss_before"] == pytest.approx(
        line.adapter.manifest.metrics["eval_loss_before"], rel=1e-4
    )


def test_an_untrained_stop_token_is_an_error_before_any_step(line: Line, tmp_path: Path) -> None:
    template = CHATML.replace("<|im_end|>\n{% endfor %}", "\n{% endfor %}")
    make_base(tmp_path / "base", chat_template=template)
    base = resolve_model("base", relative_to=tmp_path)
    with pytest.raises(ConfigError, match="never stops by itself"):
        train_adapter(line.config, line.dataset, base, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_base_without_a_chat_template_is_an_error(line: Line, tmp_path: Path) -> None:
    make_base(tmp_path / "base", chat_template=None)
    base = resolve_model("base", relative_to=tmp_path)
    with pytest.raises(ArtifactError, match="no chat template"):
        train_adapter(line.config, line.dataset, base, tmp_path / "adapter")


def test_an_eos_token_that_is_named_is_served(line: Line, tmp_path: Path) -> None:
    make_base(tmp_path / "base", chat_template=CHATML.replace("<|im_end|>", "<|endoftext|>"))
    base = resolve_model("base", relative_to=tmp_path)
    settings = {**line.config.model_dump(), **ONE_STEP}
    with pytest.raises(ConfigError, match="without a stop token"):
        train_adapter(TrainingConfig(**settings), line.dataset, base, tmp_path / "a")
    settings["eos_token"] = "<|endoftext|>"
    adapter = train_adapter(TrainingConfig(**settings), line.dataset, base, tmp_path / "a")
    generation = json.loads((adapter.path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 2]


def test_rows_above_max_length_are_an_error(line: Line, tmp_path: Path) -> None:
    settings = {**line.config.model_dump(), "max_length": 8}
    with pytest.raises(DataError, match="90 of 90 rows are longer than max_length=8"):
        train_adapter(TrainingConfig(**settings), line.dataset, line.base, tmp_path / "a")


def test_unknown_target_modules_are_named_with_the_models_own(line: Line, tmp_path: Path) -> None:
    settings = {**line.config.model_dump(), "target_modules": ["query"]}
    with pytest.raises(ConfigError, match="target_modules") as caught:
        train_adapter(TrainingConfig(**settings), line.dataset, line.base, tmp_path / "a")
    assert caught.value.hint is not None and "q_proj" in caught.value.hint


def test_an_existing_artifact_is_not_written_over(line: Line) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        train_adapter(line.config, line.dataset, line.base, line.adapter.path)


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def _unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard"}))


def _other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))


def _drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    "damage",
    [
        _truncate, _garble, _unknown_architecture, _other_shape, _drop_tensor, _no_tokenizer,
        _broken_config,
    ],
)  # fmt: skip
def test_a_damaged_base_model_is_an_error(
    line: Line, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(line.base.path, tmp_path / "base")
    damage(tmp_path / "base")
    base = resolve_model("base", relative_to=tmp_path)
    with pytest.raises(ArtifactError):
        train_adapter(line.config, line.dataset, base, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_weights_that_are_not_numbers_end_the_run(line: Line, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(line.base.path, tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    base = resolve_model("base", relative_to=tmp_path)
    with pytest.raises(ConfigError, match="loss is nan at step 0"):
        train_adapter(line.config, line.dataset, base, tmp_path / "adapter")


def test_a_training_tells_nobody_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import _telemetry

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    said: list[Any] = []
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: None)
    monkeypatch.setattr(_telemetry._TELEMETRY_QUEUE, "put", said.append)
    _telemetry.send_telemetry("trl/test")
    assert len(said) == 1
    quiet_libraries()
    _telemetry.send_telemetry("trl/test")
    assert len(said) == 1


def test_an_adapter_of_another_base_is_refused(line: Line, tmp_path: Path) -> None:
    import torch

    make_base(tmp_path / "other", seed=1)
    other = resolve_model("other", relative_to=tmp_path)
    with pytest.raises(ArtifactError, match="was trained on a base model with digest"):
        load_tuned(other, line.adapter, torch.float32)


@pytest.mark.parametrize("damage", ["shape", "missing", "extra"])
def test_an_adapter_that_does_not_fit_is_refused(line: Line, tmp_path: Path, damage: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(line.adapter.path, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    if damage == "shape":
        tensors[name] = torch.zeros(3, 5)
    elif damage == "missing":
        del tensors[name]
    else:
        tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()
    save_file(tensors, weights, metadata={"format": "pt"})
    adapter = Artifact(tmp_path / "adapter", line.adapter.manifest)
    with pytest.raises(ArtifactError, match="does not fit base model"):
        load_tuned(line.base, adapter, torch.float32)


def test_trl_does_not_warn_of_its_own_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl.experimental

    monkeypatch.delenv("TRL_EXPERIMENTAL_SILENCE", raising=False)
    with pytest.warns(match=r"trl\.experimental"):
        importlib.reload(trl.experimental)
    quiet_libraries()
    with warnings.catch_warnings(record=True) as caught:
        importlib.reload(trl.experimental)
    assert caught == []
