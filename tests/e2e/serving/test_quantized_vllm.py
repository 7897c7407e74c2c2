"""Merged and quantized in one pass, then served by real vLLM: what was learnt still comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.config import MergeConfig
from export.merge import merge
from serving.chat import answers
from serving.config import ServingConfig
from serving.server import running
from tuneline.core.artifact import Artifact
from tuneline.core.model_source import ModelSource, resolve_model
from tuneline.core.reference import read_reference

HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize("scheme", ["int8", "w4a16", "fp8"])
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
