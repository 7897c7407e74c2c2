"""`tuneline serve --bake`: start a server once and keep what it compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.config import ServingConfig
from serving.kernels.bake import bake_cache
from serving.supervisor.process import running_server
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.core.openai_client import openai_client
from tuneline.models.source import ModelSource

TIMEOUT_S = 300.0
"""A compiler may take a minute on a busy machine."""


def bake_kernels(
    config: ServingConfig,
    model: ModelSource,
    *,
    name: str,
    adapter: Artifact | None = None,
    log_path: Path,
    out: Path,
    check: Callable[[], None] | None = None,
) -> Artifact:
    """Start the server, ask it once, end it, and write its compiled kernels to `out`.

    Raises:
        ArtifactError: `out` exists or cannot be written; or `check` has raised it.
        DiskFullError: There is not enough room.
        ServerError: The server does not start.
    """
    if out.exists():
        raise ArtifactError(f"{out}: exists already; an artifact is written once")
    inputs = [model.as_input("model" if adapter is None else "base")]
    if adapter is not None:
        inputs.append(adapter.as_input("adapter"))
    with running_server(
        config, model, name=name, adapter=adapter, log_path=log_path, check=check
    ) as server:
        if not config.pools:
            with openai_client(server.endpoint, timeout_s=TIMEOUT_S) as client:
                # The first request for log-probabilities compiles a kernel of its own.
                client.completions.create(
                    model=server.endpoint.model, prompt="a", max_tokens=2, logprobs=1, temperature=0
                )
        return bake_cache(server.cache, out, inputs)
