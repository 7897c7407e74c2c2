"""The memory of a server, by hand: 2 layers, one key-value head of 4, 16-bit numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.command import memory as memory_module
from serving.command.memory import GIB, estimate_serving, require_memory
from serving.config import ServingConfig
from tuneline.core.errors import ConfigError

CONFIG = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 50,
    "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
# Key and value, 2 layers, 4 numbers each, 2 bytes.
PER_TOKEN = 2 * 2 * 4 * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "gpu_names", list)
    monkeypatch.setattr(memory_module, "total_memory_bytes", lambda: 16 * GIB)


def write(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    weights = {"model.embed_tokens.weight": np.zeros((50, 8), np.float32)}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_weights_and_cache_follow_the_number_format(folder: Path) -> None:
    half = estimate_serving(ServingConfig(dtype="bfloat16"), folder)
    assert (half.weights, half.cache_per_token) == (50 * 8 * 2, PER_TOKEN)
    full = estimate_serving(ServingConfig(dtype="float32"), folder)
    assert estimate_serving(ServingConfig(), folder) == full  # the files are float32
    assert (full.weights, full.cache_per_token) == (50 * 8 * 4, 2 * PER_TOKEN)


@pytest.mark.parametrize("other", [{"kv_lora_rank": 4}, {"sliding_window": 64}])
def test_a_model_with_another_cache_has_no_figure_per_token(
    tmp_path: Path, other: dict[str, int]
) -> None:
    found = estimate_serving(ServingConfig(), write(tmp_path, **other))
    assert found.cache_per_token is None


def test_quantized_files_count_as_they_are(tmp_path: Path) -> None:
    folder = write(tmp_path, quantization_config={"quant_method": "compressed-tensors"})
    assert estimate_serving(ServingConfig(), folder).weights == 50 * 8 * 4


def test_a_length_beyond_the_cache_is_refused_with_both_keys(folder: Path) -> None:
    most = GIB // PER_TOKEN
    config: dict[str, Any] = {"cpu_kvcache_space_gib": 1, "dtype": "bfloat16"}
    assert "of KV cache" in require_memory(ServingConfig(max_model_len=most, **config), folder)
    with pytest.raises(ConfigError, match=f"serving.max_model_len is {most + 1:,}") as caught:
        require_memory(ServingConfig(max_model_len=most + 1, **config), folder)
    assert str(caught.value.hint) == (
        f"Set serving.max_model_len: {most}, or serving.cpu_kvcache_space_gib: 2."
    )
    assert caught.value.exit_code == 2


def test_a_cache_beyond_the_memory_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cpu_kvcache_space_gib is 400") as caught:
        require_memory(ServingConfig(cpu_kvcache_space_gib=400), folder)
    assert "16.00 GiB of memory are there" in caught.value.message
    assert caught.value.hint == "Set serving.cpu_kvcache_space_gib: 15 or less."
    given = ServingConfig(cpu_kvcache_space_gib=400, extra_args={"kv_cache_memory_bytes": "1G"})
    require_memory(given, folder)


def test_weights_that_a_merge_reduces_do_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "total_memory_bytes", lambda: 2 * GIB)
    with pytest.raises(ConfigError, match="cpu_kvcache_space_gib is 2"):
        require_memory(ServingConfig(), folder)
    assert require_memory(ServingConfig(), folder, knows_weights=False).startswith("reduced")


def test_a_gpu_that_is_too_small_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "gpu_names", lambda: ["a GPU"])
    monkeypatch.setattr(memory_module, "gpu_memory_bytes", lambda _: 100_000)
    require_memory(ServingConfig(dtype="bfloat16", max_model_len=1024), folder)
    with pytest.raises(ConfigError, match=r"max_model_len is 4,096: each GPU takes"):
        require_memory(ServingConfig(dtype="bfloat16", max_model_len=4096), folder)
    require_memory(
        ServingConfig(dtype="bfloat16", max_model_len=4096, tensor_parallel_size=2), folder
    )


def test_a_folder_without_sizes_is_not_estimated(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    assert require_memory(ServingConfig(), tmp_path).startswith("not estimated: ")


@pytest.mark.parametrize(
    "flag", ["quantization", "hf-overrides", "--load-format", "hf_overrides.rope_theta"]
)
def test_a_server_with_other_weights_or_another_model_is_not_estimated(
    folder: Path, flag: str
) -> None:
    config = ServingConfig(cpu_kvcache_space_gib=400, extra_args={flag: "x"})
    assert require_memory(config, folder).startswith("not estimated: serving.extra_args sets ")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["full_attention"] * 2, PER_TOKEN),
        (["full_attention", "sliding_attention"], None),
        ([], PER_TOKEN),
    ],
)
def test_layers_that_all_have_full_attention_are_counted(
    tmp_path: Path, layers: list[str], expected: int | None
) -> None:
    found = estimate_serving(
        ServingConfig(dtype="bfloat16"), write(tmp_path, layer_types=layers, sliding_window=None)
    )
    assert found.cache_per_token == expected


@pytest.mark.parametrize(
    "config",
    [
        {"model_max_length": 1024},
        {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 1024},
        {"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 1024},
    ],
)
def test_the_length_is_the_shortest_that_vllm_starts_with(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = write(tmp_path, max_position_embeddings=10**9, **config)
    assert require_memory(ServingConfig(), folder).endswith("for 1,024 tokens")
