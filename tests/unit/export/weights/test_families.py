"""Facts about families, compared with the sources of the installed vLLM."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from export.weights.families import TIED_IN_VLLM

MODULES = {"cohere": "commandr", "cohere2": "commandr", "gemma3n_text": "gemma3n"}
"""Modules of vLLM that are not called as the family is."""
OTHERS = ("llama", "qwen2", "gemma", "gemma3", "granite", "falcon_h1")


@pytest.mark.parametrize("family", [*sorted(TIED_IN_VLLM), *OTHERS])
def test_vllm_ties_these_families_without_a_look_at_their_configuration(family: str) -> None:
    package = importlib.util.find_spec("vllm")
    assert package is not None and package.origin is not None
    models = Path(package.origin).parent / "model_executor" / "models"
    source = (models / f"{MODULES.get(family, family)}.py").read_text(encoding="utf-8")
    assert ("tie_word_embeddings" not in source) == (family in TIED_IN_VLLM)
