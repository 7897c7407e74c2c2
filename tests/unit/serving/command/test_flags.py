"""Each flag has its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.command.arguments import explain_server, server_args
from serving.command.flags import configured_flags, flatten
from serving.config import ServingConfig
from tuneline.core.environment import gpu_names
from tuneline.models.source import resolve_model

BASE = Path(__file__).resolve().parents[4] / "examples" / "tiny-base"


def test_a_flag_names_its_key_and_whether_it_is_the_default() -> None:
    config = ServingConfig(dtype="float32", extra_args={"seed": 3, "swap": None})
    reasons = {flag.words[0]: flag.reason for flag in configured_flags(config)}
    assert reasons["--dtype=float32"] == "serving.dtype"
    assert reasons["--shutdown-timeout"] == "serving.shutdown_timeout, its default"
    assert reasons["--seed=3"] == "serving.extra_args.seed"
    assert reasons["--middleware"].startswith("Tuneline: keys")
    assert not any("swap" in words for words in reasons)


def test_the_printed_flags_are_those_that_the_server_gets() -> None:
    model = resolve_model(str(BASE))
    config = ServingConfig(port=8000, max_model_len=256)
    flags = explain_server(config, model, name="tiny")
    variables = [flag for flag in flags if flag.words[0].startswith("VLLM_")]
    if not gpu_names():
        assert [flag.words for flag in variables] == [("VLLM_CPU_KVCACHE_SPACE=2",)]
        assert "this machine has no GPU" in variables[0].reason
    names = flags[len(variables) + 3].words[1:]
    args = server_args(
        config, model=str(BASE), adapter=None, served_names=names, host="127.0.0.1", port=8000
    )
    assert flatten(flags[len(variables) :]) == args
    assert len(args) > 10
    assert all(flag.reason for flag in flags)


QUANTIZED = {"quantization_config": {"quant_method": "compressed-tensors"}}


@pytest.mark.parametrize(
    ("serving", "config", "expected"),
    [
        ({}, {"dtype": "float32"}, "float32"),
        ({}, {"torch_dtype": "float32"}, "float32"),
        ({}, {}, "float32"),  # as the file of weights is
        ({}, {"dtype": "bfloat16"}, "auto"),
        ({}, {"dtype": "float32", **QUANTIZED}, "auto"),
        ({"dtype": "bfloat16"}, {"dtype": "float32"}, "bfloat16"),
    ],
)
def test_auto_keeps_the_number_format_of_float32_weights(
    tmp_path: Path, serving: dict[str, Any], config: dict[str, Any], expected: str
) -> None:
    """By itself vLLM would round them to 16 bits, and the proof expects float32."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    flags = explain_server(ServingConfig(**serving), resolve_model(str(tmp_path)), name="tiny")
    assert [word for word in flatten(flags) if word.startswith("--dtype")] == [
        f"--dtype={expected}"
    ]
