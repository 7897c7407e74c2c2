"""Bases that store their output layer: next to the embedding that it is tied to, or as `embed_out`.

The truth is what the live adapter model computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from export import quantize_model
from export.config import QuantizeConfig
from tests.integration.export import families
from tests.integration.export.merging import edit_json, edit_tensors, refusal, run_merge, tensors
from tuneline.models.source import resolve_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# The trained tensors, and whether embedding and output layer come to differ.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "lora-embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, True),
    "lora-head": ({"target_modules": ["q_proj", "lm_head"]}, True),
    "whole-head": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 11]}, False),
    "ensured": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
         "ensure_weight_tying": True}, False,
    ),
    "neither": ({"target_modules": ["q_proj"]}, False),
}  # fmt: skip


def base_with_both(folder: Path, family: str = "llama-tied") -> Path:
    base = families.make_base(folder, family)
    edit_tensors(base / "model.safetensors", lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    return base


def ties(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text()).get("tie_word_embeddings")


@pytest.mark.parametrize("case", CASES)
def test_a_tied_base_that_stores_both(case: str, tmp_path: Path) -> None:
    options, differ = CASES[case]
    base = base_with_both(tmp_path / "base")
    adapter = families.make_adapter(tmp_path / "adapter", base, **options)
    merged = run_merge(base, adapter, tmp_path / "out")
    found = tensors(merged.path)
    assert found.keys() == tensors(base).keys()
    assert merged.manifest.metrics["untied"] is differ
    assert merged.manifest.metrics["num_tensors"] == len(found)
    assert ties(merged.path) is not differ
    assert torch.equal(found[HEAD], found[EMBEDDING]) is not differ
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(merged.path) - live).abs().max() < 2e-5
    if not differ:  # what a server computes that drops the copy
        edit_tensors(merged.path / "model.safetensors", lambda t: t.pop(HEAD))
        assert (families.merged_logits(merged.path) - live).abs().max() < 2e-5


@pytest.mark.parametrize(("family", "tied"), [("gemma", True), ("llama", False)])
def test_a_silent_config_has_the_default_of_its_family(
    family: str, tied: bool, tmp_path: Path
) -> None:
    base = base_with_both(tmp_path / "base", family)
    config = json.loads((base / "config.json").read_text())
    del config["tie_word_embeddings"]
    (base / "config.json").write_text(json.dumps(config))
    adapter = families.make_adapter(
        tmp_path / "adapter", base, target_modules=["q_proj"], trainable_token_indices=[3, 7]
    )
    found = tensors(run_merge(base, adapter, tmp_path / "out").path)
    assert torch.equal(found[HEAD], found[EMBEDDING]) is tied
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(tmp_path / "out") - live).abs().max() < 2e-5


def test_a_tied_base_whose_two_tensors_differ_is_refused(tmp_path: Path) -> None:
    base = base_with_both(tmp_path / "base")
    adapter = families.make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    edit_tensors(base / "model.safetensors", lambda t: t[HEAD][5, :1].add_(1))
    message = refusal(base, adapter, tmp_path / "out")
    assert f"{HEAD} differs from {EMBEDDING}" in message
    edit_json(base / "config.json", tie_word_embeddings=False)  # as the hint says
    run_merge(base, adapter, tmp_path / "out")


def neox(folder: Path, **options: Any) -> Path:
    config = transformers.GPTNeoXConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, **options,
    )  # fmt: skip
    return families.save_random(folder, config, torch.float32)


@pytest.mark.parametrize(
    ("tied", "trained", "untied"),
    [
        (False, ["embed_in", "lm_head"], False),
        (True, ["embed_in"], True),
        (True, ["lm_head"], True),
        (True, [], False),
    ],
)
def test_a_head_of_another_name(
    tied: bool, trained: list[str], untied: bool, tmp_path: Path
) -> None:
    base = neox(tmp_path / "base", tie_word_embeddings=tied)
    assert ("embed_out.weight" in tensors(base)) is not tied
    adapter = families.make_adapter(
        tmp_path / "adapter", base, target_modules=["query_key_value", *trained]
    )
    merged = run_merge(base, adapter, tmp_path / "out")
    found = tensors(merged.path).keys()
    assert found == tensors(base).keys() | ({"embed_out.weight"} if untied else set())
    assert merged.manifest.metrics["untied"] is untied
    assert ties(merged.path) is (tied and not untied)
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(merged.path) - live).abs().max() < 2e-5


def test_a_resized_head_of_another_name(tmp_path: Path) -> None:
    base = neox(tmp_path / "base", tie_word_embeddings=False)
    adapter = families.make_adapter(
        tmp_path / "adapter", base, target_modules=["query_key_value"], num_tokens=328
    )
    merged = run_merge(base, adapter, tmp_path / "out")
    live = families.live_logits(base, adapter, 328)
    assert (families.merged_logits(merged.path, 328) - live).abs().max() < 2e-5


def test_a_head_of_another_name_is_not_quantized(tmp_path: Path) -> None:
    base = neox(tmp_path / "base", tie_word_embeddings=False)
    source = resolve_model(str(base))
    quantized = quantize_model(QuantizeConfig(scheme="int8"), source, tmp_path / "out")
    exact = families.merged_logits(base)
    assert (families.merged_logits(quantized.path) - exact).abs().max() < exact.std() / 4
    assert torch.equal(tensors(quantized.path)["embed_out.weight"],
                       tensors(base)["embed_out.weight"])  # fmt: skip


@pytest.mark.parametrize(
    ("family", "options", "warns"),
    [
        ("gemma2", {"target_modules": ["q_proj", "lm_head"]}, True),
        ("gemma2", {"target_modules": ["q_proj"]}, False),
        ("llama-tied", {"target_modules": ["q_proj", "lm_head"]}, False),
    ],
)
def test_a_head_that_vllm_would_not_compute_with_is_said(
    family: str,
    options: dict[str, Any],
    warns: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = families.make_base(tmp_path / "base", family)
    adapter = families.make_adapter(tmp_path / "adapter", base, **options)
    run_merge(base, adapter, tmp_path / "out")
    assert ("vLLM ties the two in the family gemma2" in caplog.text) is warns
