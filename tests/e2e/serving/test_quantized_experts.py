"""Quantized mixtures of experts in vLLM: each expert's codes and scales go where vLLM's own loader
puts them, and where the processor has kernels for experts, a server gives what was computed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from export.runtimes.transformers_folder import load_model
from serving.config import ServingConfig
from serving.supervisor.process import running_server
from tests.integration.export import families
from tests.integration.export.merging import tensors
from tests.integration.export.quantize.test_experts import ROUTERS, SPARSE_LAYERS, make_base
from tests.integration.export.quantize.test_quantize import run_quantize
from tuneline.models.source import resolve_model

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("vllm_weights.py")
CASES = [
    ("qwen3_moe", "fp8"), ("mixtral", "w4a16"), ("qwen2_moe", "int8"), ("olmoe", "w4a16"),
    ("qwen3_next", "fp8"), ("glm4_moe", "int8"), ("glm4_moe_lite", "w4a16"),
    ("deepseek_v2", "int8"), ("deepseek_v3", "w4a16"),
]  # fmt: skip
ATTENTION = {
    "qwen3_next": ("qkv_proj", "q_proj"), "glm4_moe": ("qkv_proj", "q_proj"),
    "glm4_moe_lite": ("fused_qkv_a_proj", "q_a_proj"), "deepseek_v2": ("q_proj", "q_proj"),
    "deepseek_v3": ("fused_qkv_a_proj", "q_a_proj"),
}  # fmt: skip
"""The layer that vLLM joins the queries' projection into, and that projection."""
PARTS = {"mixtral": ("w1", "w3", "w2")}
HAS_KERNELS = torch.cpu._is_amx_tile_supported() or importlib.util.find_spec("zentorch") is not None


def test_vllm_s_own_loader_puts_every_expert_in_its_place(tmp_path: Path) -> None:
    arguments = []
    for family, scheme in CASES:
        base = make_base(tmp_path / f"{family}-base", family)
        run_quantize(base, scheme, tmp_path / family)
        arguments += [str(tmp_path / family), str(tmp_path / f"{family}.safetensors")]
    done = subprocess.run(
        [sys.executable, str(WORKER), *arguments], capture_output=True, text=True, check=False,
        timeout=400, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for family, scheme in CASES:
        held = load_file(tmp_path / f"{family}.safetensors")
        stored = tensors(tmp_path / family)
        block = "block_sparse_moe" if family == "mixtral" else "mlp"
        gate, up, down = PARTS.get(family, ("gate_proj", "up_proj", "down_proj"))
        weight = "weight_packed" if scheme == "w4a16" else "weight"
        num_compared = 0
        layers = SPARSE_LAYERS.get(family, [0, 1])
        for layer in layers:
            prefix = f"model.layers.{layer}"
            for kind in (weight, "weight_scale"):
                w13, w2 = (
                    held[f"{prefix}.{block}.experts.routed_experts.{name}_{kind}"]
                    for name in ("w13", "w2")
                )
                for expert in range(4):
                    parts = {
                        part: stored[f"{prefix}.{block}.experts.{expert}.{part}.{kind}"]
                        for part in (gate, up, down)
                    }
                    joined = torch.cat([parts[gate].float(), parts[up].float()])
                    assert torch.equal(w13[expert].float(), joined), (family, layer, expert, kind)
                    assert torch.equal(w2[expert].float(), parts[down].float())
                    num_compared += 3
                if f"{prefix}.linear_attn.out_proj.{kind}" in stored:
                    joined_name = name = f"{prefix}.linear_attn.in_proj_qkvz"
                else:
                    joint, own = ATTENTION.get(family, ("qkv_proj", "q_proj"))
                    joined_name, name = f"{prefix}.self_attn.{joint}", f"{prefix}.self_attn.{own}"
                query = stored[f"{name}.{kind}"].float()
                found = held[f"{joined_name}.{kind}"].float()
                assert torch.equal(found[: len(query)], query)
            for router in ROUTERS[family]:
                name = f"{prefix}.{router}.weight"
                assert torch.equal(held[name], stored[name])
        assert num_compared == 24 * len(layers)
        assert torch.equal(held["lm_head.weight"][: families.VOCABULARY], stored["lm_head.weight"])


@pytest.mark.skipif(
    not HAS_KERNELS, reason="vLLM multiplies quantized experts on a CPU only with AMX or zentorch"
)
def test_a_server_computes_what_the_proof_computes(
    serving_settings: dict[str, Any], tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", "qwen3_moe")
    model = run_quantize(base, "w4a16", tmp_path / "model")
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, families.VOCABULARY, (100,), generator=generator)
    serving = ServingConfig(**{**serving_settings, "dtype": "bfloat16", "max_model_len": 128})
    with running_server(
        serving, resolve_model(str(model.path)), name="experts", log_path=tmp_path / "vllm.log"
    ) as server:
        asked = {
            "model": "experts", "prompt": ids.tolist(), "max_tokens": 1, "temperature": 0,
            "logprobs": 1, "echo": True,
        }  # fmt: skip
        request = urllib.request.Request(  # noqa: S310
            f"{server.endpoint.url}/completions", json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            given = json.load(answer)["choices"][0]["logprobs"]["token_logprobs"]
    served = torch.tensor(given[1 : len(ids)])

    def difference(path: Path) -> float:
        network, _ = load_model(path)
        with torch.inference_mode():
            rows = network(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        return float((rows.gather(1, ids[1:, None])[:, 0] - served).abs().mean())

    assert len(served) == 99
    assert difference(model.path) < 0.3 * difference(base)
