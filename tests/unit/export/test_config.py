"""The room's configuration: strict, and readable without any machine-learning library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.config import MergeConfig, ParityConfig
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError
from tuneline.core.tolerances import WEIGHT_TOLERANCES


def test_reading_it_imports_no_heavy_library() -> None:
    code = (
        "import sys, export, export.config; assert len(export.FORMS) > 10; "
        "print([m for m in ('torch', 'numpy', 'transformers', 'vllm') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    listing = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert listing.stdout.strip() == "[]"


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"merge: dtype: .*found 'bf16'"):
        validate_config(MergeConfig, {"dtype": "bf16"}, "merge")


def test_a_misspelt_tolerance_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean max_logprob_difference"):
        validate_config(ParityConfig, {"tolerances": {"max_logprob_diff": 1}}, "parity")


def test_every_number_format_has_its_tolerances() -> None:
    stored = {"float32", "bfloat16", "float16"}
    reduced = {"int8", "fp8", "int4", "pruned"}
    assert WEIGHT_TOLERANCES.keys() == stored | reduced
