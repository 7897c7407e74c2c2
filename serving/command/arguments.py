"""vLLM's command line and environment, worked out from the configuration and what is served.

Pure calculation, apart from reading a LoRA adapter's own description.
"""

from __future__ import annotations

import ipaddress
import json
import math
import site
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.config import ServingConfig
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.endpoint import read_key
from tuneline.core.errors import ConfigError
from tuneline.core.secrets import without_secrets
from tuneline.models.adapter_config import (
    ADAPTER_CONFIG,
    read_adapter_config,
    require_servable,
    served_rank,
)
from tuneline.models.source import ModelSource

MIDDLEWARE = "serving.middleware.TunelineMiddleware"

# Flags that have no `--no-` form; `false` leaves them out.
FLAGS_WITHOUT_NEGATION = frozenset({
    "aggregate-engine-logging", "data-parallel-multi-port-external-lb", "disable-log-stats",
    "grpc", "headless",
})  # fmt: skip

# Variables that open routes or move the port. The key is set anew where there is one.
UNWANTED = frozenset({
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_PORT", "VLLM_SERVER_DEV_MODE",
})  # fmt: skip


@dataclass(frozen=True)
class Command:
    """How to start the server as a process of this machine."""

    argv: list[str]
    env: dict[str, str] = field(repr=False)
    """The whole environment of the process; holds the key, so it is never shown."""


def vllm_command(
    config: ServingConfig,
    *,
    model: ModelSource,
    adapter: Artifact | Path | None,
    served_names: Sequence[str],
    host: str,
    port: int,
    environ: Mapping[str, str],
) -> Command:
    """The process that serves `model`, with `adapter` beside it in adapter mode.

    Args:
        served_names: The names that clients ask for; the first is the run's name.
        environ: The environment to start from; it holds the key, if there is one.

    Raises:
        ConfigError: `host` is reachable from other machines and there is no key; or the mode and
            the adapter do not fit each other.
        ArtifactError: The adapter cannot be served beside its base.
    """
    key = api_key(config, host, environ)
    adapter_path = adapter.path if isinstance(adapter, Artifact) else adapter
    args = server_args(
        config,
        model=str(model.path.resolve()),
        adapter=None if adapter_path is None else adapter_path.resolve(),
        served_names=served_names,
        host=host,
        port=port,
    )
    env = _inherited(environ)
    env.update(server_env(config, artifact_facts(model, adapter, served_names[0])))
    here = str(Path(__file__).resolve().parents[2])
    if here not in site.getsitepackages():
        env["PYTHONPATH"] = ":".join(filter(None, [here, environ.get("PYTHONPATH")]))
    if key is not None:
        env["VLLM_API_KEY"] = key
    # -P: the current directory, which may hold a folder named like a library, stays off the path.
    return Command([sys.executable, "-P", "-m", "serving.supervisor.launch", *args], env)


def server_args(
    config: ServingConfig,
    *,
    model: str,
    adapter: Path | None,
    served_names: Sequence[str],
    host: str,
    port: int,
    adapter_at: str | None = None,
) -> list[str]:
    """The arguments of `vllm serve`, the same in a process here and in a container.

    Args:
        model: The model's folder as the server sees it.
        adapter: The adapter's folder as this process sees it, in adapter mode.
        adapter_at: The adapter's folder as the server sees it, if that is another path.

    Raises:
        ConfigError: The mode and the adapter do not fit each other.
        ArtifactError: The adapter cannot be served beside its base.
    """
    if config.mode == "merged" and adapter is not None:
        raise ConfigError(
            f"serving.mode is merged and an adapter is given ({adapter})",
            hint="Set serving.mode to adapter, or leave the adapter out.",
        )
    if config.mode == "adapter" and adapter is None:
        raise ConfigError("serving.mode is adapter and no adapter is given")
    args = [model, "--host", host, "--port", str(port)]
    if adapter is None:
        args += ["--served-model-name", *served_names]
    else:
        args += _adapter_args(adapter, adapter_at or str(adapter), served_names)
    for name in (
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "gpu_memory_utilization",
        "tensor_parallel_size",
    ):
        args += _flag(name, getattr(config, name))
    if config.enforce_eager:
        args += ["--enforce-eager"]
    args += ["--shutdown-timeout", str(config.shutdown_timeout)]
    args += ["--disable-fastapi-docs", "--middleware", MIDDLEWARE]
    args += ["--disable-access-log-for-endpoints", "/health,/ready,/metrics"]
    for name, value in config.extra_args.items():
        args += _flag(name, value)
    return args


def server_env(config: ServingConfig, facts: Mapping[str, str]) -> dict[str, str]:
    """The variables that the server needs, the same in a process here and in a container; no key.

    `facts` are those of `artifact_facts`.
    """
    return {
        **facts,
        "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kvcache_space_gib),
        "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(config.ready_timeout_s)),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model is a folder: nothing has to be asked of the Hub while it is served.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def artifact_facts(
    model: ModelSource, adapter: Artifact | Path | None, name: str
) -> dict[str, str]:
    """What the server's metrics say is served: the adapter where there is one, else the model."""
    kind, digest = model.kind, model.digest
    if isinstance(adapter, Artifact):
        kind, digest = adapter.kind, adapter.digest
    elif adapter is not None:
        kind, digest = "adapter", ""
    return {
        "TUNELINE_ARTIFACT_NAME": name,
        "TUNELINE_ARTIFACT_KIND": kind,
        "TUNELINE_ARTIFACT_DIGEST": digest,
    }


def served_names(name: str, digest: str) -> list[str]:
    """`[name, name@digest12]`: what clients ask for, and what fixes the artifact they get."""
    return [name, f"{name}@{short_digest(digest)}"]


def api_key(config: ServingConfig, host: str, environ: Mapping[str, str]) -> str | None:
    """The key that clients must send, if any.

    Raises:
        ConfigError: `host` is reachable from other machines and there is no key.
    """
    key = read_key(environ, config.api_key_env)
    if key is None and not _is_loopback(host):
        raise ConfigError(
            f"serving.host {host} is reachable from other machines and {config.api_key_env} is not "
            "set; a key is required beyond loopback",
            hint=f"Try: export {config.api_key_env}=$(openssl rand -hex 24)   "
            "(or serving.host=127.0.0.1)",
        )
    return key


def _adapter_args(adapter: Path, adapter_at: str, served_names: Sequence[str]) -> list[str]:
    adapter_config = read_adapter_config(adapter)
    require_servable(adapter_config, adapter / ADAPTER_CONFIG)
    args = ["--served-model-name", f"{served_names[0]}-base"]
    args += ["--enable-lora", "--max-lora-rank", str(served_rank(adapter_config))]
    # Each name is an adapter of its own to vLLM; with room for fewer it would swap them in and out.
    args += ["--max-loras", str(len(served_names)), "--lora-modules"]
    args += [json.dumps({"name": name, "path": adapter_at}) for name in served_names]
    # The tokenizer, chat template and stop tokens it was trained with, where they lie beside it.
    if (adapter / "tokenizer_config.json").is_file():
        args += ["--tokenizer", adapter_at]
    if (adapter / "generation_config.json").is_file():
        args += ["--generation-config", adapter_at]
    return args


def _flag(name: str, value: Any) -> list[str]:
    flag = name.removeprefix("--").replace("_", "-")
    if value is None:
        return []
    if value is True:
        return [f"--{flag}"]
    if value is False:
        return [] if flag in FLAGS_WITHOUT_NEGATION else [f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{flag}", *(_text(item) for item in value)]
    # Joined, so that a value that begins with a hyphen is not taken for a flag.
    return [f"--{flag}={_text(value)}"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in without_secrets(environ).items() if name not in UNWANTED}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
