"""On an NVIDIA GPU: what is merged in bfloat16 and what is quantized to FP8 answers as trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.config import MergeConfig
from export.merge.merge import merge
from serving.chat import answers
from serving.config import ServingConfig
from serving.supervisor.process import running_server
from tuneline.core.artifact import Artifact
from tuneline.core.environment import gpu_names
from tuneline.core.reference import read_reference
from tuneline.models.source import ModelSource, resolve_model


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_names(), reason="there is no NVIDIA GPU here")
@pytest.mark.parametrize("quantize", [None, "fp8"])
def test_a_gpu_serves_what_was_trained(
    quantize: str | None,
    base: ModelSource,
    adapter: Artifact,
    adapter_reference: Artifact,
    tmp_path: Path,
) -> None:
    config = MergeConfig.model_validate({"dtype": "bfloat16", "quantize": quantize})
    model = resolve_model(str(merge(config, base, adapter, tmp_path / "model").path))
    serving = ServingConfig(dtype="bfloat16", max_model_len=256, max_num_seqs=8)
    expected = read_reference(adapter_reference)
    assert len(expected) == 8
    with running_server(serving, model, name="tiny", log_path=tmp_path / "vllm.log") as server:
        given = [
            "".join(
                answers(server.endpoint, {"temperature": 0, "max_tokens": len(entry.token_ids)})(
                    entry.messages
                )
            )
            for entry in expected
        ]
    equal = sum(answer == entry.text for answer, entry in zip(given, expected, strict=True))
    assert equal >= 7, list(zip(given, [entry.text for entry in expected], strict=True))
