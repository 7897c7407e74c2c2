"""The data of a server before it starts: its command, its names, its address, its cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from serving.command.arguments import Command, served_names, vllm_command
from serving.command.memory import require_memory
from serving.command.vllm_version import require_vllm
from serving.config import ServingConfig
from serving.kernels.cache import CompileCache, open_cache
from serving.kernels.key import cache_parts
from serving.supervisor.ports import reachable
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.schemas import ModelConfig
from tuneline.models.source import ModelSource

WITHOUT_TEXT = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM",
    "RewardModel", "EmbeddingModel",
)  # fmt: skip
"""Ends of the names of classes that write no text."""


@dataclass(frozen=True)
class Launch:
    """The data to start a server, and to start it again."""

    config: ServingConfig
    model: ModelSource
    command: Command
    names: list[str]
    address: tuple[str, int]
    """Where this machine reaches it."""
    log_path: Path
    cache: CompileCache


def plan_launch(
    config: ServingConfig,
    model: ModelSource,
    adapter: Artifact | Path | None,
    name: str,
    log_path: Path,
    host: str,
    port: int,
) -> Launch:
    """Return how to serve `model` as `name` on a port that is reserved already.

    Raises:
        ArtifactError: The model writes no text.
        ConfigError: A key is required and missing, the mode and the adapter do not fit, or the
            server does not fit into memory.
        MissingError: vLLM is not installed, or its version has known holes.
    """
    require_vllm()
    require_text(model.path)
    require_memory(config, model.path, is_start=True)
    digest = adapter.digest if isinstance(adapter, Artifact) else model.digest
    names = served_names(name, digest, config.aliases)
    command = vllm_command(
        config, model=model, adapter=adapter, served_names=names, host=host, port=port,
        environ=os.environ, state_dir=log_path.parent / "adapters",
    )  # fmt: skip
    artifacts = [model.digest, *([adapter.digest] if isinstance(adapter, Artifact) else [])]
    cache = open_cache(cache_parts(command.flags, artifacts))
    return Launch(config, model, command, names, (reachable(host), port), log_path, cache)


def require_text(folder: Path) -> None:
    """Check that a model writes text. vLLM starts with a classifier, and every request fails.

    Raises:
        ArtifactError: It is a classifier, a reward model or an embedding model.
    """
    path = folder / CONFIG
    names = read_json(path, ModelConfig).get("architectures") or []
    if names and all(name.endswith(WITHOUT_TEXT) for name in names):
        raise ArtifactError(
            f"{path}: architectures is {', '.join(names)}; expected a model that writes text",
            hint="vLLM itself serves classifiers and embeddings; Tuneline opens no route for them.",
        )
