"""Memory of a merge, measured: it does not grow with the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import peft
import torch
import transformers

from benchmarks.merge import Shape, write_adapter, write_model

BOUND_MIB = 100
"""The adapter's matrices of one module and a few blocks of 8 MiB."""

CHILD = """
import sys
from pathlib import Path
from export.config import MergeConfig
from export.merge.merge import merge
from export.weights.model_folder import read_base
from export.merge.naming import library_namings
from tuneline.models.source import ModelSource

def mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

base, adapter, out = map(Path, sys.argv[1:])
list(library_namings(read_base(base)))  # imports what is asked where rules give no name
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
before = mib("VmRSS")
merge(MergeConfig(), ModelSource("base", base, "sha256:0", "base-model"), adapter, out)
print(mib("VmHWM") - before)
"""


def peak_mib(folder: Path, shape: Shape) -> float:
    """Peak resident memory of merging a model of this shape, over what the imports take."""
    base, adapter = write_model(folder / "base", shape), write_adapter(folder / "adapter", shape)
    return peak_of(base, adapter, folder / "out")


def peak_of(base: Path, adapter: Path, out: Path) -> float:
    root = Path(__file__).parents[4]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(base), str(adapter), str(out)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return float(child.stdout)


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """One shard of 253 MiB with tensors of 62 MiB, 125 in float32: neither is held in memory."""
    shape = Shape(16000, 2048, 8192, 1, 16, 16, False)
    peak = peak_mib(tmp_path, shape)
    size_mib = (tmp_path / "base" / "model.safetensors").stat().st_size / 2**20
    assert size_mib > 250
    assert peak < BOUND_MIB, f"{peak:.0f} MiB for a model of {size_mib:.0f} MiB"


def test_experts_that_are_fused_in_the_files_are_not_held_either(tmp_path: Path) -> None:
    """A layer's `gate_up_proj` is one tensor of 128 MiB, 256 in float32."""
    config = transformers.GptOssConfig(
        vocab_size=320, hidden_size=512, intermediate_size=1024, num_hidden_layers=1, head_dim=64,
        num_attention_heads=8, num_key_value_heads=2, num_local_experts=64, num_experts_per_tok=2,
        layer_types=["full_attention"], bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    options = peft.LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    tuned = peft.get_peft_model(model, options)
    tuned.save_pretrained(tmp_path / "adapter")
    del model, tuned
    peak = peak_of(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    size_mib = (tmp_path / "base" / "model.safetensors").stat().st_size / 2**20
    assert size_mib > 190
    assert peak < BOUND_MIB, f"{peak:.0f} MiB for a model of {size_mib:.0f} MiB"
