"""Merged and quantized in one pass, then served by real vLLM: what was learnt still comes out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from export.config import MergeConfig
from export.merge import merge
from serving.chat import answers
from serving.config import ServingConfig
from serving.server import running
from tuneline.core.artifact import MANIFEST, Artifact, open_artifact
from tuneline.core.model_source import ModelSource, resolve_model
from tuneline.core.reference import read_reference

HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize("scheme", ["w4a16", "fp8"])
def test_a_quantized_model_answers_as_the_trained_one(
    scheme: str,
    base: ModelSource,
    adapter: Artifact,
    adapter_reference: Artifact,
    serving_settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    config = MergeConfig.model_validate({"dtype": "bfloat16", "quantize": scheme, "group_size": 32})
    model = merge(config, base, adapter, tmp_path / "model")
    serving = ServingConfig(**{**serving_settings, "dtype": "bfloat16"})
    expected = read_reference(adapter_reference)
    assert len(expected) == 8
    log_path = tmp_path / "vllm.log"
    with running(
        serving, resolve_model(str(model.path)), name="quantized", log_path=log_path
    ) as server:
        if scheme == "w4a16" and not HAS_AVX512:
            # Loaded and ready; the kernel that multiplies is built for AVX-512 alone.
            assert "Using CPUWNA16LinearKernel" in log_path.read_text()
            return
        given = [
            "".join(
                answers(server.endpoint, {"temperature": 0, "max_tokens": len(entry.token_ids)})(
                    entry.messages
                )
            )
            for entry in expected
        ]
    assert "compressed-tensors" in log_path.read_text()
    equal = sum(answer == entry.text for answer, entry in zip(given, expected, strict=True))
    # Four bits without calibration cost this tiny model some of what it learnt by heart.
    assert equal >= (2 if scheme == "w4a16" else 7), list(
        zip(given, [entry.text for entry in expected], strict=True)
    )


DROPPED = "layers.0.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize("fault", [None, DROPPED])
def test_a_quantized_model_is_proven_by_the_weights_that_it_is_said_to_have(
    fault: str | None,
    base: ModelSource,
    adapter: Artifact,
    adapter_reference: Artifact,
    serving_settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    source = adapter.path
    if fault is not None:
        source = tmp_path / "adapter"
        shutil.copytree(adapter.path, source, ignore=shutil.ignore_patterns(MANIFEST))
        values = {**load_file(source / "adapter_model.safetensors")}
        (name,) = (name for name in values if name.endswith(fault))
        values[name] = values[name] * 0
        save_file(values, source / "adapter_model.safetensors", metadata={"format": "pt"})
    config = MergeConfig.model_validate({"quantize": "int8"})
    model = merge(config, base, source, tmp_path / "model")
    with running(
        ServingConfig(**serving_settings), resolve_model(str(model.path)), name="quantized",
        log_path=tmp_path / "vllm.log",
    ) as server:  # fmt: skip
        given = [
            sys.executable, "-m", "tuneline", "prove", "--reference", str(adapter_reference.path),
            "--candidate", server.endpoint.url, "--model", server.endpoint.model, "--json",
        ]  # fmt: skip
        plain, stated = (
            subprocess.run(
                [*given, "--out", str(tmp_path / out), *more],
                capture_output=True, text=True, check=False, timeout=300,
            )
            for out, more in (("plain", ()), ("stated", ("--weights", str(model.path))))
        )  # fmt: skip
    proof = open_artifact(tmp_path / "stated", kind="parity")
    figures = json.loads((proof.path / "parity.json").read_text())
    assert figures["stated_weights"] == "int8"
    assert "int8 was stated by the caller" in (proof.path / "parity.md").read_text()
    assert {entry.role: entry.digest for entry in proof.manifest.inputs} == {
        "reference": adapter_reference.digest, "weights": model.digest,
    }  # fmt: skip
    assert proof.manifest.config["tolerances"]["max_logprob_difference"] == pytest.approx(0.151)
    if fault is None:
        assert stated.returncode == 0, stated.stderr
    else:
        assert stated.returncode == 6 and "--weights DIR" not in stated.stderr, stated.stderr
        assert plain.returncode == 6 and "--weights DIR" in plain.stderr, plain.stderr
