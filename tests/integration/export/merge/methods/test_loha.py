"""LoHa against PEFT's own `merge_and_unload` and the live adapter model."""

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
    "loha": ("llama", lambda: peft.LoHaConfig(r=8, alpha=12, target_modules=LINEAR)),
    "loha-patterns": (
        "qwen3",
        lambda: peft.LoHaConfig(
            r=4, alpha=6, target_modules=["q_proj", "down_proj"],
            rank_pattern={"down_proj": 3}, alpha_pattern={r"layers\.1\..*": 5},
            layers_to_transform=[1],
        ),
    ),
    "loha-with-a-saved-module": (
        "mistral", lambda: peft.LoHaConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
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
    adapter = make_adapter_of(
        tmp_path / "adapter", base, peft.LoHaConfig(target_modules=["q_proj", "lm_head"])
    )
    merged = run_merge(base, adapter, tmp_path / "out")
    assert merged.manifest.metrics["untied"] is True
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(merged.path) - live).abs().max() < 5e-5


# The case, the damage to the tensors, and the refusal.
DAMAGE: dict[str, tuple[str, Any, str]] = {
    "loha-lost-layer": (
        "loha", lambda t: [t.pop(name) for name in list(t) if name.startswith(Q)],
        "has nothing for model.layers.0.self_attn.q_proj, which target_modules in",
    ),
    "loha-lost-factor": (
        "loha", lambda t: t.pop(f"{Q}.hada_w2_b"),
        "has hada_w1_a, hada_w1_b, hada_w2_a; expected hada_w1_a and hada_w1_b and hada_w2_a and",
    ),
    "loha-convolution": (
        "loha", lambda t: t.update({f"{Q}.hada_t1": torch.ones(8, 8, 1, 1)}),
        f"{Q}.hada_t1: is a tensor of an unknown kind",
    ),
    "loha-shape": (
        "loha", lambda t: t.update({f"{Q}.hada_w1_b": torch.ones(8, 32)}),
        f"{Q}.hada_w1_b: has shape [8, 32]; expected [8, 64]",
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
        ("loha", "use_dora", True, "use_dora=True: not supported by the merge of LOHA adapters"),
        ("loha", "target_modules", ["q_proj"], "which no option in adapter_config.json names"),
        ("loha", "r", 0, "adapter_config.json: r: "),
        ("loha", "r", 4, "expected [64, 4]"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    case: str, option: str, value: Any, message: str, tmp_path: Path
) -> None:
    base, adapter = made(case, tmp_path)
    edit_json(adapter / "adapter_config.json", **{option: value})
    assert message in refusal(base, adapter, tmp_path / "out")


def test_a_weighted_sum_is_refused(tmp_path: Path) -> None:
    base, adapter = made("loha", tmp_path)
    with pytest.raises(ArtifactError, match=r"LoHa has no weighted share"):
        merge(MergeConfig(), resolve_model(str(base)), [(adapter, 0.5)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
