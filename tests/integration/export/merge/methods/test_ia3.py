"""(IA)³ against PEFT's own `merge_and_unload` and the live adapter model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from export.config import MergeConfig
from export.merge.merge import merge
from tests.integration.export import families
from tests.integration.export.merging import (
    assert_same_bits,
    edit_json,
    edit_tensors,
    make_adapter_of,
    refusal,
    run_merge,
)
from tuneline.core.errors import ArtifactError
from tuneline.models.source import resolve_model

WEIGHTS = "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Family and configuration.
CASES: dict[str, tuple[str, Any]] = {
    "ia3": (
        "llama", lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "ia3-with-biases": (
        "qwen2", lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "ia3-pattern": (
        "phi", lambda: peft.IA3Config(
            target_modules=r".*\.(v_proj|fc1|fc2)", feedforward_modules=r".*\.fc2"
        ),
    ),
    "ia3-conv1d": (
        "gpt2", lambda: peft.IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"],
            fan_in_fan_out=True,
        ),
    ),
}  # fmt: skip


def made(case: str, tmp_path: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    family, config = CASES[case]
    base = families.make_base(tmp_path / "base", family, dtype)
    return base, make_adapter_of(tmp_path / "adapter", base, config())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_a_merge_has_the_bits_of_peft(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base, adapter = made(case, tmp_path, dtype)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_bits(merged.path, families.peft_merge(base, adapter), base)
    if dtype == torch.float32:
        live = families.live_logits(base, adapter)
        assert (families.merged_logits(base) - live).abs().max() > 1e-2
        assert (families.merged_logits(merged.path) - live).abs().max() < 5e-5


def test_a_tied_head_comes_untied(tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", "llama-tied")
    config = peft.IA3Config(target_modules=["q_proj", "lm_head"], feedforward_modules=[])
    adapter = make_adapter_of(tmp_path / "adapter", base, config)
    merged = run_merge(base, adapter, tmp_path / "out")
    assert merged.manifest.metrics["untied"] is True
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(merged.path) - live).abs().max() < 5e-5


# The case, the damage to the tensors, and the refusal.
DAMAGE: dict[str, tuple[str, Any, str]] = {
    "ia3-lost-layer": (
        "ia3", lambda t: t.pop("base_model.model.model.layers.1.mlp.down_proj.ia3_l"),
        "has nothing for model.layers.1.mlp.down_proj, which target_modules in",
    ),
    "ia3-shape": (
        "ia3", lambda t: t.update(
            {"base_model.model.model.layers.1.mlp.down_proj.ia3_l": torch.ones(64, 1)}
        ),
        "down_proj.ia3_l: has shape [64, 1]; expected [1, 96]",
    ),
    "lora-tensor-in-ia3": (
        "ia3", lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(8, 64)}),
        f"{Q}.lora_A.weight: is a tensor of an unknown kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_adapter_is_refused(case: str, tmp_path: Path) -> None:
    made_as, damage, message = DAMAGE[case]
    base, adapter = made(made_as, tmp_path)
    edit_tensors(adapter / WEIGHTS, damage)
    assert message in refusal(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("case", "option", "value", "message"),
    [
        ("ia3", "feedforward_modules", None, "feedforward_modules=None: not supported"),
        ("ia3", "feedforward_modules", [], "expected [64, 1]"),
        ("ia3", "lora_alpha", 4, "lora_alpha=4: not supported by the merge of IA3 adapters"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    case: str, option: str, value: Any, message: str, tmp_path: Path
) -> None:
    base, adapter = made(case, tmp_path)
    edit_json(adapter / "adapter_config.json", **{option: value})
    assert message in refusal(base, adapter, tmp_path / "out")


def test_a_weighted_sum_is_refused(tmp_path: Path) -> None:
    base, adapter = made("ia3", tmp_path)
    with pytest.raises(ArtifactError, match=r"\(IA\)³ has no weighted share"):
        merge(MergeConfig(), resolve_model(str(base)), [(adapter, 0.5)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
