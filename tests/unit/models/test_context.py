"""The length of a model's context, by the rules of vLLM for each kind of rope scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneline.core.errors import DataError
from tuneline.models.context import context_length, require_context, served_length
from tuneline.models.source import ModelSource

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2}
PHI = {
    "model_type": "phi3", "hidden_size": 32, "num_attention_heads": 2, "pad_token_id": 0,
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
}  # fmt: skip


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


CONFIGS: dict[str, tuple[dict[str, Any], int, int]] = {
    "plain": (LLAMA | {"max_position_embeddings": 1024}, 1024, 1024),
    "gpt2": ({"model_type": "gpt2", "n_positions": 512}, 512, 512),
    "linear": (
        LLAMA | {"max_position_embeddings": 1024} | _rope("linear", factor=4.0), 4096, 4096,
    ),
    "yarn": (
        LLAMA | {"max_position_embeddings": 4096}
        | _rope("yarn", factor=4.0, original_max_position_embeddings=1024), 4096, 4096,
    ),
    "llama3": (
        LLAMA | {"max_position_embeddings": 8192}
        | _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=1024), 8192, 8192,
    ),
    "longrope": (
        PHI | _rope("longrope", factor=32.0, short_factor=[1.0] * 8, long_factor=[1.0] * 8),
        131072, 4096,
    ),
    "window": (
        {"model_type": "mistral", "hidden_size": 32, "num_attention_heads": 2,
         "max_position_embeddings": 2048, "sliding_window": 256}, 2048, 2048,
    ),
}  # fmt: skip
"""For each config.json the longest sequence of the model, and what a server takes by default."""


def _folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_the_context_is_the_one_of_config_json(name: str, tmp_path: Path) -> None:
    config, context, served = CONFIGS[name]
    folder = _folder(tmp_path, config)
    assert context_length(folder) == context
    assert served_length(folder, None) == served
    assert served_length(folder, 100) == 100


@pytest.mark.parametrize(("limit", "expected"), [(512, 512), (4096, 1024), (10**30, 1024)])
def test_the_tokenizer_can_limit_the_context(limit: int, expected: int, tmp_path: Path) -> None:
    folder = _folder(tmp_path, CONFIGS["plain"][0])
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    assert context_length(folder) == expected


def test_a_model_without_a_limit_is_served_with_vllm_s_own(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"model_type": "mamba"})
    assert context_length(folder) is None
    assert served_length(folder, None) == 2048


def test_a_row_beyond_the_context_is_refused(tmp_path: Path) -> None:
    base = ModelSource("base", _folder(tmp_path, CONFIGS["plain"][0]), "sha256:0", "base-model")
    assert require_context(base, 1024) == 1024
    with pytest.raises(DataError) as caught:
        require_context(base, 1025)
    assert "the longest row has 1,025 tokens; the base model base takes 1,024" in str(caught.value)
    assert "training.max_length: 1024" in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_a_prompt_that_fits_without_its_answer_only_is_refused(tmp_path: Path) -> None:
    base = ModelSource("base", _folder(tmp_path, CONFIGS["plain"][0]), "sha256:0", "base-model")
    assert require_context(base, 1000, 24) == 1024
    with pytest.raises(DataError, match="the longest prompt has 1,000 tokens, and an answer up to"):
        require_context(base, 1000, 25)
    with pytest.raises(DataError, match=r"the longest row has 1,025 tokens"):
        require_context(base, 1025, 25)
