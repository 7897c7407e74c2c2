"""The environment of the server's process: what it serves, its limits, its key."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from pathlib import Path

from serving.config import ServingConfig
from tuneline.core.artifact import Artifact
from tuneline.core.endpoint import read_key
from tuneline.core.errors import ConfigError
from tuneline.core.secrets import without_secrets
from tuneline.models.source import ModelSource

# Variables that open routes or move the port. `vllm_command` sets the key again.
UNWANTED = frozenset({
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_PORT", "VLLM_SERVER_DEV_MODE",
})  # fmt: skip


def server_env(config: ServingConfig, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the server, the same in a process here and in a container; no key.

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
    """Return the labels of `tuneline_artifact_info`: the adapter's, or else the model's."""
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


def api_key(config: ServingConfig, host: str, environ: Mapping[str, str]) -> str | None:
    """Return the key that clients must send, or None.

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


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this process that the server may have; no secrets."""
    return {name: value for name, value in without_secrets(environ).items() if name not in UNWANTED}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
