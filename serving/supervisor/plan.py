"""The data of a server before it starts: its command, its names, its address, its cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from serving.command.arguments import Command, served_names, vllm_command
from serving.command.memory import require_memory
from serving.command.vllm_version import require_vllm
from serving.config import POOLING_ROUTES, ServingConfig
from serving.kernels.cache import CompileCache, open_cache
from serving.kernels.key import cache_parts
from serving.supervisor.ports import reachable
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError
from tuneline.models.classifier import is_classifier
from tuneline.models.companion_files import MODULES
from tuneline.models.folder import CONFIG, read_json
from tuneline.models.schemas import ModelConfig
from tuneline.models.source import ModelSource
from tuneline.models.vectors import read_recipe

SCORES = frozenset({"pooling", "classify", "score"})
VECTORS = frozenset({"pooling", "embeddings", "score"})
POOLERS: dict[str, frozenset[str]] = {
    "ForSequenceClassification": SCORES,
    "ForTokenClassification": frozenset({"pooling"}),
    "ForQuestionAnswering": frozenset(),
    "ForMaskedLM": frozenset({"pooling"}),
    "RewardModel": frozenset({"pooling"}),
    "EmbeddingModel": VECTORS,
}
"""Routes of classes that write no text, by the end of the name. A class that writes text gives
vectors too."""


VLLM_POOLINGS = ("cls", "lasttoken", "mean")


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
        ArtifactError: The model has not what `serving.routes` opens, or vLLM lacks its pooling.
        ConfigError: A key is required and missing, the mode and the adapter do not fit, or the
            server does not fit into memory.
        MissingError: vLLM is not installed, or its version has known holes.
    """
    require_vllm()
    require_routes(config, model.path)
    require_pooling(config, model.path)
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


def require_routes(config: ServingConfig, folder: Path) -> None:
    """Check that a model has what the open routes give. vLLM starts with a classifier that is to
    write text, and every request fails.

    Raises:
        ArtifactError: The model writes no text and the server is to, or the model has not the
            vectors or scores of a route.
    """
    path = folder / CONFIG
    names = read_json(path, ModelConfig).get("architectures") or []
    found = [
        next((routes for end, routes in POOLERS.items() if name.endswith(end)), None)
        for name in names
    ]
    writes_text = not found or None in found
    has = VECTORS if writes_text else frozenset().union(*(one or () for one in found))
    shown = f"{path}: architectures is {', '.join(names)}"
    if not config.pools and not writes_text:
        ways = [f"--set 'serving.routes=[{route}]'" for route in sorted(has)]
        raise ArtifactError(
            f"{shown}; expected a model that writes text",
            hint=f"Try: {' or '.join(ways)}" if ways else "vLLM has no route for such a model.",
        )
    missing = [name for name in config.routes if name in POOLING_ROUTES and name not in has]
    if missing:
        raise ArtifactError(
            f"{shown}, which does not have serving.routes: {', '.join(missing)}; it has "
            f"{', '.join(sorted(has)) or 'none of them'}"
        )


def require_pooling(config: ServingConfig, folder: Path) -> None:
    """Check that vLLM has the pooling that a model's own files state. vLLM warns in its log and
    takes the pooling of the architecture.

    Raises:
        ArtifactError: vLLM does not have that pooling.
    """
    if not config.pools or "pooler_config" in config.given_args or not (folder / MODULES).is_file():
        return
    if is_classifier(folder):
        return
    try:
        recipe = read_recipe(folder)
    except ArtifactError:
        return  # vLLM has modules of its own, for sparse vectors among others
    # The normalized sum is the normalized mean.
    is_mean = recipe.pooling == "mean_sqrt_len" and recipe.is_normalized and not recipe.dense
    if recipe.pooling not in VLLM_POOLINGS and not is_mean:
        raise ArtifactError(
            f"{folder / MODULES}: the pooling is {recipe.pooling}; vLLM has "
            f"{', '.join(VLLM_POOLINGS)}, and would serve other vectors",
            hint="Choose a model with one of these poolings. serving.extra_args.pooler_config sets "
            "another pooling on purpose.",
        )
