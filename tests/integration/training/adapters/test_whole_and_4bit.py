"""Full fine-tuning and QLoRA through the line: train, reference, merge, parity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from export import merge_adapter, prove_model
from export.config import MergeConfig, ParityConfig
from tests.integration.training.conftest import FOREIGN_TOKENIZER_FILES, SETTINGS, Line
from training import build_reference, train_adapter
from training.adapters.check import check_targets
from training.adapters.servable import takes_lora
from training.config import ReferenceConfig, TrainingConfig
from training.loop.arguments import trainer_arguments
from training.prepared import prepare_training
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ConfigError
from tuneline.models.source import ModelSource, resolve_model
from tuneline.pipeline.run_config import Run, RunConfig
from tuneline.pipeline.stage import ADAPTER
from tuneline.pipeline.stages import stages

FEW = {**SETTINGS, "num_train_epochs": 2, "lora_dropout": 0.0, "save_steps": 4}


def _config(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({**FEW, **values})


@pytest.fixture
def base(line: Line, tmp_path: Path) -> ModelSource:
    """The base without the made-up tokenizer files, which no merge reads."""
    foreign = shutil.ignore_patterns(*FOREIGN_TOKENIZER_FILES)
    shutil.copytree(line.base.path, tmp_path / "base", ignore=foreign)
    return resolve_model("base", relative_to=tmp_path)


def _prove(
    line: Line, base: ModelSource, trained: Artifact, merged: Artifact, folder: Path
) -> dict[str, Any]:
    config = ReferenceConfig(num_prompts=3, max_new_tokens=6)
    reference = build_reference(config, line.dataset, base, trained, folder / "reference")
    parity = prove_model(
        ParityConfig(), reference, resolve_model(str(merged.path)), folder / "parity",
        form="merged",
    )  # fmt: skip
    return dict(parity.manifest.metrics)


def test_a_whole_model_is_trained_cast_and_proven(
    line: Line, base: ModelSource, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    config = _config(finetuning_type="full", learning_rate=1e-3)
    said = json.loads((base.path / "config.json").read_text())
    own_code = {**said, "auto_map": {"AutoModelForCausalLM": "own.Model"}}
    (base.path / "config.json").write_text(json.dumps(own_code))
    base = resolve_model("base", relative_to=tmp_path)
    trained = train_adapter(config, line.dataset, base, tmp_path / "trained")
    assert "auto_map" not in json.loads((trained.path / "config.json").read_text())
    metrics = trained.manifest.metrics
    before = load_file(base.path / "model.safetensors")
    after = load_file(trained.path / "model.safetensors")
    assert trained.kind == "model" and after.keys() == before.keys()
    assert metrics["num_trainable_parameters"] == sum(value.numel() for value in before.values())
    assert not any(torch.equal(after[name], before[name]) for name in before)
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    assert metrics["servable_as_adapter"] is False
    assert all(row["num_without_gradient"] == 0 for row in metrics["trained"])
    source = resolve_model(str(trained.path))
    merged = merge_adapter(MergeConfig(), source, (), tmp_path / "merged")
    found = load_file(merged.path / "model.safetensors")
    assert all(torch.equal(found[name], after[name]) for name in after)
    parity = _prove(line, base, trained, merged, tmp_path)
    assert parity["verdict"] == "PASS" and parity["max_logprob_difference"] < 1e-5
    half = merge_adapter(MergeConfig(dtype="bfloat16"), source, (), tmp_path / "half")
    rounded = load_file(half.path / "model.safetensors")
    assert all(torch.equal(rounded[name], after[name].bfloat16()) for name in after)
    assert json.loads((half.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_adapter_of_a_4bit_base_merges_into_what_was_trained(
    line: Line, base: ModelSource, tmp_path: Path
) -> None:
    config = _config(load_in_4bit=True)
    adapter = train_adapter(config, line.dataset, base, tmp_path / "adapter")
    metrics = adapter.manifest.metrics
    assert len(metrics["four_bit_modules"]) == 7
    assert 0 < metrics["four_bit_share"] < 1
    assert metrics["num_expert_parameters_not_in_4bit"] == 0
    assert metrics["eval_loss"] < metrics["eval_loss_before"]
    assert metrics["merged_only_because"] == ["it belongs to the base rounded to NF4"]
    merged = merge_adapter(MergeConfig(), base, adapter, tmp_path / "merged")
    figures = merged.manifest.metrics
    assert figures["merge_base"] == "dequantized"
    assert figures["kl_dequantized"] < 1e-6 < figures["kl_original"]
    parity = _prove(line, base, adapter, merged, tmp_path)
    assert parity["verdict"] == "PASS" and parity["max_logprob_difference"] < 1e-4


def test_a_4bit_training_projects_trained_positions_only(
    line: Line, base: ModelSource, tmp_path: Path
) -> None:
    config = _config(load_in_4bit=True)
    prepared = prepare_training(config, line.dataset, base)
    arguments = trainer_arguments(prepared.chosen, tmp_path / "work", resumed=False)
    trainer = prepared.trainer(config, arguments)
    trained = [p.dtype for p in trainer.model.parameters() if p.requires_grad]
    assert trained and set(trained) == {torch.float32}
    assert trainer.has_answer_loss


def test_trained_tokens_of_a_tied_base_are_trained_and_proven(
    line: Line, base: ModelSource, tmp_path: Path
) -> None:
    assert json.loads((base.path / "config.json").read_text())["tie_word_embeddings"]
    config = _config(trainable_token_indices=[2], max_steps=4)
    adapter = train_adapter(config, line.dataset, base, tmp_path / "adapter")
    (rows,) = [row for row in adapter.manifest.metrics["trained"] if "tokens" in row["pattern"]]
    assert rows["num_parameters"] == 64 and rows["max_change"] > 0
    merged = merge_adapter(MergeConfig(), base, adapter, tmp_path / "merged")
    parity = _prove(line, base, adapter, merged, tmp_path)
    assert parity["verdict"] == "PASS" and parity["max_logprob_difference"] < 1e-4


def test_an_adapter_of_a_mamba_model_is_trained_and_proven(
    line: Line, base: ModelSource, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = transformers.MambaConfig(
        vocab_size=384, hidden_size=64, state_size=8, num_hidden_layers=2, pad_token_id=0,
        eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    (base.path / "config.json").unlink()
    transformers.MambaForCausalLM(network).save_pretrained(base.path)
    mamba = resolve_model("base", relative_to=tmp_path)
    config = _config(max_steps=4, learning_rate=1e-3)
    adapter = train_adapter(config, line.dataset, mamba, tmp_path / "adapter")
    metrics = adapter.manifest.metrics
    assert metrics["left_out"].keys() == {
        "backbone.layers.*.mixer.dt_proj", "backbone.layers.*.mixer.out_proj",
    }  # fmt: skip
    assert metrics["merged_only_because"] == ["vLLM's MambaForCausalLM takes no adapters"]
    merged = merge_adapter(MergeConfig(), mamba, adapter, tmp_path / "merged")
    parity = _prove(line, mamba, adapter, merged, tmp_path)
    assert parity["verdict"] == "PASS" and parity["max_logprob_difference"] < 1e-4


def test_the_check_says_what_would_be_trained(line: Line) -> None:
    found = check_targets(_config(load_in_4bit=True, use_dora=True), line.base)
    assert found["trained model.layers.*.mlp.up_proj"].startswith("2 modules, ")
    assert "use_dora=True" in found["served"] and "NF4" in found["served"]
    assert "of the weights in NF4" in found["4 bits"]
    whole = check_targets(_config(finetuning_type="full"), line.base)
    assert "100.00% of the base's" in whole["trained"]
    # A reward model answers nothing, so that no server has it.
    assert "served" not in check_targets(_config(method={"type": "reward"}), line.base)


def test_an_adapter_that_vllm_cannot_serve_is_refused_before_training(
    base: ModelSource, tmp_path: Path
) -> None:
    config = json.loads((base.path / "config.json").read_text())
    served = check_targets(_config(), base, as_adapter=True)["served"]
    assert served == "merged, or as an adapter"
    changed = {**config, "architectures": ["GPT2LMHeadModel"]}
    (base.path / "config.json").write_text(json.dumps(changed))
    assert "takes no adapters" in check_targets(_config(), base)["served"]
    with pytest.raises(ConfigError, match="vLLM's GPT2LMHeadModel takes no adapters") as caught:
        check_targets(_config(), base, as_adapter=True)
    assert caught.value.hint == "Try: --set serving.mode=merged"
    values = {"name": "x", "base_model": "base", "data": {"path": "rows.jsonl"}}
    values["serving"] = {"mode": "adapter"}
    run = Run(tmp_path / "run.yaml", RunConfig.model_validate(values), tmp_path)
    (stage,) = [one for one in stages(run) if one.name == ADAPTER]
    (prepare,) = stage.prepare
    with pytest.raises(ConfigError, match=r"serving\.mode: adapter cannot serve this adapter"):
        prepare(run)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("LlamaForCausalLM", True), ("Phi3ForCausalLM", True), ("GPT2LMHeadModel", False),
     ("NoSuchModel", None)],
)  # fmt: skip
def test_vllm_says_which_models_take_adapters(architecture: str, expected: bool | None) -> None:
    assert takes_lora(architecture) is expected
