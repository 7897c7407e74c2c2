"""The environment of the server's process: what it serves, its limits, its key."""

from __future__ import annotations

import json
import math
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.config import FILE_FLAGS, ServingConfig, flag_name
from serving.middleware.settings import VARIABLE as SETTINGS_VARIABLE
from tuneline.core.artifact import Artifact, canonical_digest
from tuneline.core.config import keyed_values
from tuneline.core.digests import short_digest
from tuneline.core.endpoint import is_loopback, read_key
from tuneline.core.errors import ConfigError
from tuneline.core.secrets import without_secrets
from tuneline.models.source import ModelSource

# Variables that open routes, load adapters from other places, move the port, or start the front end
# of vLLM that has no middleware. `vllm_command` sets the key again.
UNWANTED = frozenset({
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_LORA_RESOLVER_CACHE_DIR", "VLLM_LORA_RESOLVER_HF_REPO_LIST", "VLLM_PORT",
    "VLLM_SERVER_DEV_MODE", "VLLM_USE_RUST_FRONTEND",
})  # fmt: skip

LOG_LEVEL = "VLLM_LOGGING_LEVEL"


def server_env(config: ServingConfig, facts: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the server, the same in a process here and in a container; no key.

    `facts` are those of `artifact_facts`.
    """
    return {
        **facts,
        "TUNELINE_ENGINE": engine_settings(config),
        SETTINGS_VARIABLE: json.dumps(_settings(config)),
        "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kvcache_space_gib),
        "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(config.ready_timeout_s)),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model is a folder: nothing has to be asked of the Hub while it is served.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def engine_settings(config: ServingConfig) -> str:
    """Return twelve digits that are equal for servers whose engines have the same settings.

    A load report keeps them, so that nobody compares the speed of other settings unawares. Paths of
    files differ from machine to machine and change no engine.
    """
    given = {
        flag_name(name): value for name, value in config.extra_args.items() if value is not None
    }
    kept = {name: value for name, value in given.items() if name not in FILE_FLAGS}
    return short_digest(canonical_digest({**keyed_values(config), "extra_args": kept}))


def _settings(config: ServingConfig) -> dict[str, Any]:
    """Return the middleware's settings; `serving.middleware.settings` has their meaning."""
    traces = any("otlp" in name for name in config.extra_args)
    return {
        **config.limits.model_dump(),
        "routes": list(config.routes),
        "log_format": config.log_format,
        "stall_after_s": config.stall_after_s,
        "shutdown_timeout_s": config.shutdown_timeout,
        # The exporter of traces sends what it has when the process ends by itself.
        "exits_at_once": not traces,
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
    """Return the key of the environment, or None.

    A server with a keys file and without that key gets a key of its own, for this process only.

    Raises:
        ConfigError: `host` is reachable from other machines and there is no key.
    """
    key = read_key(environ, config.api_key_env)
    if key is None and config.keys_file is not None:
        return secrets.token_urlsafe(24)
    if key is None and not is_loopback(host):
        raise ConfigError(
            f"serving.host {host} is reachable from other machines and {config.api_key_env} is not "
            "set; a key is required beyond loopback",
            hint=f"Try: export {config.api_key_env}=$(openssl rand -hex 24)   "
            "(or name keys with serving.keys_file, or serving.host=127.0.0.1)",
        )
    return key


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this process that the server may have; no secrets."""
    kept = {name: value for name, value in without_secrets(environ).items() if name not in UNWANTED}
    # TRL sets this variable in the process that trains; the log of a server then lacks every line
    # that says what was loaded.
    if "trl" in sys.modules and kept.get(LOG_LEVEL) == "ERROR":
        del kept[LOG_LEVEL]
    return kept
