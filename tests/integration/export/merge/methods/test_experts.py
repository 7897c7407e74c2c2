"""LoRA on fused experts (`target_parameters`): in memory one tensor, on disk one per expert."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.integration.export import families
from tests.integration.export.merging import (
    assert_same_bits,
    edit_json,
    edit_tensors,
    refusal,
    run_merge,
    tensors,
)

WEIGHTS = "adapter_model.safetensors"
EXPERTS = "base_model.model.model.layers.0.mlp.experts"
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

OPTIONS: dict[str, dict[str, Any]] = {
    "both": {"target_modules": ["q_proj"], "target_parameters": BOTH},
    "gate-and-up": {"target_modules": ["o_proj"], "target_parameters": BOTH[:1]},
    "down": {"target_modules": ["v_proj"], "target_parameters": BOTH[1:], "use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "patterns": {
        "target_modules": ["q_proj"],
        "target_parameters": BOTH,
        "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {"experts.gate_up_proj": 5},
    },
}


def peft_saved(base: Path, adapter: Path, out: Path) -> dict[str, torch.Tensor]:
    """PEFT's merge, taken apart into one tensor per expert by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out)
    return tensors(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", families.EXPERTS)
@pytest.mark.parametrize("case", OPTIONS)
def test_experts_have_the_bits_of_peft(
    case: str, family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = families.make_base(tmp_path / "base", family, dtype)
    adapter = families.make_adapter(tmp_path / "adapter", base, **OPTIONS[case])
    merged = run_merge(base, adapter, tmp_path / "out")
    assert_same_bits(merged.path, peft_saved(base, adapter, tmp_path / "peft"), base)
    before, found = tensors(base), tensors(merged.path)
    experts = [name for name in before if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    changed = {name for name in experts if not torch.equal(before[name], found[name])}
    parts = {
        "gate-and-up": ("gate_proj", "up_proj", "w1", "w3"),
        "down": ("down_proj", "w2"),
    }.get(case, ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))
    assert changed == {name for name in experts if name.split(".")[-2] in parts}


@pytest.mark.parametrize("family", families.EXPERTS)
def test_the_merged_experts_answer_as_the_live_ones(family: str, tmp_path: Path) -> None:
    base = families.make_base(tmp_path / "base", family)
    adapter = families.make_adapter(tmp_path / "adapter", base, **OPTIONS["both"])
    merged = run_merge(base, adapter, tmp_path / "out")
    live = families.live_logits(base, adapter)
    assert (families.merged_logits(base) - live).abs().max() > 1e-2
    assert (families.merged_logits(merged.path) - live).abs().max() < 5e-5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    base = families.make_base(folder / "base", "qwen3-moe")
    return base, families.make_adapter(folder / "adapter", base, **OPTIONS["both"])


DAMAGE: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "has lora_A; expected lora_A and lora_B": lambda t: t.pop(f"{EXPERTS}.lora_B.weight"),
    "do not fit 4 experts": lambda t: t.update({f"{EXPERTS}.lora_A.weight": torch.ones(8, 48)}),
    "which target_parameters in": lambda t: [
        t.pop(name) for name in list(t) if name.startswith(EXPERTS)
    ],
    "lora_magnitude_vector, which do not go together": lambda t: t.update(
        {f"{EXPERTS}.lora_magnitude_vector": torch.ones(64)}
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_expert_adapter_is_refused(
    message: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(made[1], tmp_path / "adapter"))
    edit_tensors(adapter / WEIGHTS, DAMAGE[message])
    assert message in refusal(made[0], adapter, tmp_path / "out")


def test_experts_of_another_rank_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(made[1], tmp_path / "adapter"))
    edit_json(adapter / "adapter_config.json", r=4)
    assert "at rank 4" in refusal(made[0], adapter, tmp_path / "out")
