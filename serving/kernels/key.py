"""The key of a compile cache: artifact, flags, vLLM's version, hardware; nothing of one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.command.flags import Flag
from serving.command.vllm_version import vllm_version
from tuneline.core.artifact import canonical_digest
from tuneline.core.digests import short_digest
from tuneline.core.environment import cpu_name, gpu_names
from tuneline.core.requirements import installed_version

# Flags that differ between two starts of one artifact, or that only the HTTP server reads.
NOT_COMPILED = frozenset({
    "--allow-credentials", "--allowed-headers", "--allowed-methods", "--allowed-origins",
    "--api-server-count", "--chat-template", "--chat-template-content-format",
    "--default-chat-template-kwargs", "--disable-fastapi-docs", "--disable-uvicorn-access-log",
    "--enable-auto-tool-choice", "--enable-log-requests", "--enable-prompt-tokens-details",
    "--generation-config", "--host", "--lora-modules", "--middleware", "--otlp-traces-endpoint",
    "--override-generation-config", "--port", "--reasoning-parser", "--reasoning-parser-plugin",
    "--response-role", "--runner", "--scheduling-policy", "--served-model-name",
    "--shutdown-timeout", "--stream-interval", "--structured-outputs-config", "--tokenizer",
    "--tool-call-parser", "--tool-parser-plugin", "--tool-server", "--tool-strict-level",
    "--uvicorn-log-level",
})  # fmt: skip


def cache_parts(flags: Sequence[Flag], artifacts: Sequence[str]) -> dict[str, Any]:
    """Return the values that a compile cache belongs to, as a JSON object.

    An eager server compiles no part of the model, only small functions that no artifact changes:
    all eager servers of a machine share one cache.

    Args:
        flags: The flags of the server; the first is the model's folder.
        artifacts: The digests of the model and of its adapter.
    """
    parts: dict[str, Any] = {
        "vllm": vllm_version(),
        "torch": installed_version("torch"),
        "hardware": gpu_names() or [cpu_name()],
    }
    words = [
        " ".join(flag.words)
        for flag in flags[1:]
        if flag.words[0].partition("=")[0] not in NOT_COMPILED
    ]
    if "--enforce-eager" in words:
        return {**parts, "eager": True}
    return {**parts, "artifacts": list(artifacts), "flags": sorted(words)}


def cache_name(parts: dict[str, Any]) -> str:
    """Return the name of the folder of a compile cache."""
    return short_digest(canonical_digest(parts))
