"""The `serving` section of `run.yaml`: vLLM's own option names, and how its process is kept."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from tuneline.core.config import StrictModel
from tuneline.core.secrets import is_secret_name
from tuneline.core.tolerances import Tolerances

# Flags that this room works out itself; two sources for one flag would let one win in silence.
OWN_FLAGS = {
    "config": "write its keys under serving and serving.extra_args",
    "disable_access_log_for_endpoints": "probes are always left out",
    "disable_fastapi_docs": "only the routes of the API are open",
    "api_key": "keys travel in the environment; set serving.api_key_env",
    "enable_lora": "set serving.mode to adapter",
    "generation_config": "it comes from the model's folder",
    "headless": "the server answers HTTP",
    "host": "set serving.host",
    "lora_modules": "set serving.mode to adapter",
    "max_lora_rank": "it follows from the adapter",
    "middleware": "Tuneline's own is the outermost",
    "model": "it is the artifact that is served",
    "model_tag": "it is the artifact that is served",
    "port": "set serving.port",
    "root_path": "the middleware knows routes from the root",
    "served_model_name": "it is the run's name and the artifact's digest",
    "ssl_certfile": "TLS ends in front of the server",
    "ssl_keyfile": "TLS ends in front of the server",
    "tokenizer": "it comes from the model's folder",
    "trust_remote_code": "code from a model folder is never run",
    "uds": "the server listens on TCP",
}


NOT_SECRET_FLAGS = {"allow_credentials"}
"""Flags of vLLM that are named like a secret and hold none: this flag is a CORS setting."""


class ServedParityConfig(StrictModel):
    """How the server's answers are compared with the reference."""

    tolerances: Tolerances | None = None
    """None takes the default of the number format that the server computes in: docs/parity.md."""
    concurrency: int = Field(default=1, ge=1)
    """Requests in flight. With more than one, vLLM computes them in batches, and float results
    depend on the batch."""
    request_timeout_s: float = Field(default=120.0, gt=0, json_schema_extra={"keyed": False})


class ServingConfig(StrictModel):
    """Options named as in vLLM reach the flag of that name; None leaves vLLM's default."""

    renamed: ClassVar[dict[str, str]] = {"shutdown_timeout_s": "shutdown_timeout"}

    mode: Literal["merged", "adapter"] = "merged"
    """Serve the merged model, or the base model with the LoRA adapter."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the type of the weights. bfloat16 is slow on a CPU without AMX or AVX512-BF16."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer together."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Requests computed at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int | None = Field(default=None, ge=1)
    """GPUs that share the model."""
    enforce_eager: bool = False
    """Skip compilation: a quicker start and slower answers."""
    cpu_kvcache_space_gib: int = Field(default=2, ge=1)
    """Memory for the KV cache on a CPU (`VLLM_CPU_KVCACHE_SPACE`); vLLM's own default takes most of
    the memory. A GPU has `gpu_memory_utilization` instead."""
    host: str = Field(default="127.0.0.1", json_schema_extra={"keyed": False})
    """Beyond loopback a key is required."""
    port: int | None = Field(default=None, ge=1, le=65535, json_schema_extra={"keyed": False})
    """None: a free port from the operating system."""
    api_key_env: str = Field(
        default="VLLM_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra={"keyed": False},
    )
    """The environment variable that holds the key; where it is unset, no key is asked for."""
    ready_timeout_s: float = Field(default=600.0, gt=0, json_schema_extra={"keyed": False})
    """How long loading may take."""
    shutdown_timeout: int = Field(default=30, ge=0, json_schema_extra={"keyed": False})
    """Seconds that answers in progress may take to finish after SIGTERM."""
    max_restarts: int = Field(default=0, ge=0, json_schema_extra={"keyed": False})
    """How often `tuneline serve` starts a crashed server again."""
    extra_args: dict[str, bool | int | float | str | list[Any] | dict[str, Any] | None] = Field(
        default_factory=dict
    )
    """Any other vLLM flag by its name: `true` gives `--flag`, `false` `--no-flag`, a list several
    values, a mapping JSON; null leaves the flag out."""
    # Only the parity of the served model depends on this section; its stage names it.
    parity: ServedParityConfig = Field(
        default=ServedParityConfig(), json_schema_extra={"keyed": False}
    )

    @field_validator("extra_args")
    @classmethod
    def _no_flag_twice(cls, extra_args: dict[str, Any]) -> dict[str, Any]:
        problems = []
        for name in extra_args:
            key = name.removeprefix("--").replace("-", "_").removeprefix("no_")
            if key in OWN_FLAGS:
                problems.append(f"{name} cannot be set here: {OWN_FLAGS[key]}")
            elif key in cls.model_fields:
                problems.append(f"{name} cannot be set here: set serving.{key}")
            elif is_secret_name(key) and key not in NOT_SECRET_FLAGS:
                problems.append(f"{name} cannot be set here: secrets come from the environment")
        if problems:
            raise ValueError("; ".join(problems))
        return extra_args
