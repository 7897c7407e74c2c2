"""Does the server fit into memory? An estimate from config.json and the headers of the weights.

It refuses only a server that vLLM refuses too, 20 to 40 seconds later: the figures are lower
bounds. For a token, a layer with full attention keeps its key and its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.config import ServingConfig
from tuneline.core.environment import gpu_names
from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.core.free_memory import free_memory_bytes, gpu_memory_bytes, total_memory_bytes
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.network import Network, read_network
from tuneline.models.source import is_float32

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30
NOT_ESTIMATED_ON_A_GPU = {"kv_cache_memory_bytes", "cpu_offload_gb", "pipeline_parallel_size"}

# Flags with which vLLM serves other weights, another model or another cache than the files say.
NOT_ESTIMATED = {"quantization", "hf_overrides", "load_format"}

LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""Keys of config.json from which vLLM takes the shortest length."""

# Keys of config.json that mean other caches than a key and a value per token and layer.
OTHER_CACHES = (
    "kv_lora_rank", "sliding_window", "mamba_d_state", "ssm_cfg", "state_size",
    "linear_num_key_heads", "num_kv_shared_layers", "attn_layer_indices", "hybrid_override_pattern",
)  # fmt: skip


@dataclass(frozen=True)
class ServingMemory:
    """Bytes of a server's parts."""

    weights: int
    cache_per_token: int | None
    """None for a model whose cache is not one key and one value per token and layer."""


def estimate_serving(config: ServingConfig, folder: Path) -> ServingMemory:
    """Return the memory that weights and KV cache take on one device.

    Raises:
        ArtifactError: The model's files name no sizes, or cannot be read.
    """
    network = read_network(folder)
    values = read_json(folder / CONFIG)
    text: dict[str, Any] = values.get("text_config") or values
    dtype = "float32" if config.dtype == "auto" and is_float32(folder) else config.dtype
    size = ITEM_BYTES.get(dtype, 2)
    devices = config.tensor_parallel_size or 1
    is_plain = not any(text.get(key) for key in OTHER_CACHES)
    is_plain = is_plain and set(text.get("layer_types") or ()) <= {"full_attention"}
    per_token = None
    if is_plain and "kv_cache_dtype" not in config.given_args:
        per_token = 2 * network.num_layers * network.key_value_size * size // devices
    return ServingMemory(_weights(network, values, size) // devices, per_token)


def require_memory(
    config: ServingConfig, folder: Path, *, knows_weights: bool = True, is_start: bool = False
) -> str:
    """Check that a server has memory for its weights and for one sequence of the longest length.

    Args:
        knows_weights: Whether `folder` has the weights that are served; a merge may reduce them.
        is_start: Whether the server starts now, so that memory in use by others counts.

    Returns:
        What was found, for people.

    Raises:
        ConfigError: The server cannot start; the message names the keys to change.
    """
    if changed := sorted(config.given_args & NOT_ESTIMATED):
        return f"not estimated: serving.extra_args sets {', '.join(changed)}"
    try:
        memory = estimate_serving(config, folder)
        length = config.max_model_len or own_length(folder)
    except ArtifactError as error:
        return f"not estimated: {error.message}"
    weights = memory.weights if knows_weights else 0
    cache = 0
    if memory.cache_per_token is not None and length is not None:
        cache = memory.cache_per_token * length
    if gpu_names():
        _require_gpu(config, weights, cache, length)
    elif "kv_cache_memory_bytes" not in config.given_args:
        free = free_memory_bytes() if is_start else total_memory_bytes()
        _require_cpu(config, weights, memory.cache_per_token, length, free)
    found = f"{_size(weights)} of weights" if knows_weights else "reduced weights"
    return f"{found}, {_size(cache)} of KV cache for {length:,} tokens" if cache else found


def _require_cpu(
    config: ServingConfig, weights: int, per_token: int | None, length: int | None, free: int
) -> None:
    given = config.cpu_kvcache_space_gib
    if weights + given * GIB > free:
        fits = (free - weights) // GIB
        raise ConfigError(
            f"serving.cpu_kvcache_space_gib is {given}: with {_size(weights)} of weights the "
            f"server takes {_size(weights + given * GIB)}; {_size(free)} of memory are there",
            hint=f"Set serving.cpu_kvcache_space_gib: {fits} or less."
            if fits > 0
            else "Choose a smaller model, or quantize it: export.merge.quantize.",
        )
    if per_token is not None and length is not None and length * per_token > given * GIB:
        raise ConfigError(
            f"serving.max_model_len is {length:,}: one sequence of that length takes "
            f"{_size(length * per_token)} of KV cache; serving.cpu_kvcache_space_gib is {given}",
            hint=f"Set serving.max_model_len: {given * GIB // per_token}, or "
            f"serving.cpu_kvcache_space_gib: {-(-length * per_token // GIB)}.",
        )


def _require_gpu(config: ServingConfig, weights: int, cache: int, length: int | None) -> None:
    if config.given_args & NOT_ESTIMATED_ON_A_GPU:
        return
    share, total = config.gpu_memory_utilization or 1.0, gpu_memory_bytes("total")
    if total and weights + cache > share * total:
        raise ConfigError(
            f"serving.max_model_len is {length or 0:,}: each GPU takes {_size(weights)} of weights "
            f"and {_size(cache)} of KV cache for one sequence; it has {_size(share * total)}",
            hint="Lower serving.max_model_len, raise serving.tensor_parallel_size, or quantize "
            "the weights: export.merge.quantize.",
        )


def _weights(network: Network, config: dict[str, Any], size: int) -> int:
    if "quantization_config" in config:
        return network.file_bytes
    return network.num_parameters * size


def own_length(folder: Path) -> int | None:
    """Return the length that vLLM takes by itself; None if config.json does not name one."""
    config = read_json(folder / CONFIG)
    text = config.get("text_config") or config
    lengths = [text[key] for key in LENGTHS if isinstance(text.get(key), int)]
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    original = text.get("original_max_position_embeddings")
    # With LongRoPE, vLLM starts with the length before the scaling.
    if {scaling.get("rope_type"), scaling.get("type")} & {"longrope", "su"} and original:
        lengths.append(original)
    return min(lengths, default=None)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
