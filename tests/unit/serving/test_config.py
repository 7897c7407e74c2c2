from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from serving.config import ServingConfig
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError


def test_the_section_loads_no_heavy_library() -> None:
    program = (
        "import sys; import serving.config, serving.parity\n"
        "import serving.command.arguments, serving.supervisor.restarts\n"
        "import serving; serving.running_server, serving.prove_served, serving.answers\n"
        "heavy = {'torch', 'transformers', 'vllm', 'numpy', 'openai'} & set(sys.modules)\n"
        "print('loaded:', sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "loaded: []", result.stderr


@pytest.mark.parametrize(
    "name",
    ["api_key", "--api-key", "served-model-name", "max_model_len", "shutdown-timeout", "middleware",
     "trust_remote_code", "port"],
)  # fmt: skip
def test_a_flag_that_has_another_source_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be set here"):
        validate_config(ServingConfig, {"extra_args": {name: "x"}}, "serving")


def test_an_earlier_name_of_a_key_is_answered_with_the_key() -> None:
    with pytest.raises(ConfigError, match="shutdown_timeout_s: is called shutdown_timeout here"):
        validate_config(ServingConfig, {"shutdown_timeout_s": 10}, "serving")


def test_every_refused_flag_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(ServingConfig, {"extra_args": {"api_key": "s", "dtype": "half"}}, "serving")
    assert "api_key" in str(caught.value)
    assert "serving.dtype" in str(caught.value)


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean max_model_len\?"):
        validate_config(ServingConfig, {"max_model_length": 10}, "serving")


@pytest.mark.parametrize("key", ["kv_cache_dtype", "tool_call_parser", "enable_prefix_caching"])
def test_a_flag_of_vllm_is_shown_its_place(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: unknown key \(a flag of vLLM .*args\.{key}\)"):
        validate_config(ServingConfig, {key: "x"}, "serving")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"routes": ["embeddings", "page"]}, "embeddings takes the place of text; remove page"),
        ({"routes": ["score"], "mode": "adapter"}, "score needs a merged model"),
    ],
)
def test_a_server_has_either_text_or_vectors(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate_config(ServingConfig, values, "serving")
