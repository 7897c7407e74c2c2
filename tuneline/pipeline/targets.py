"""The check of what a run trains, against the rooms that use it after the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuneline.core.errors import ArtifactError, ConfigError
from tuneline.models.source import ModelSource
from tuneline.pipeline.run_config import RunConfig
from tuneline.pipeline.server import serves_adapter

MERGE_BASE = "--set export.merge.merge_base="
"""The option `--merge-base` of the command `merge`, in run.yaml."""


def require_targets(config: RunConfig, base: ModelSource) -> dict[str, str]:
    """Check what would be trained, and that the result can be merged and served; return it.

    Raises:
        ConfigError: The base cannot be trained so, or what is trained cannot be merged or served.
        ArtifactError: The base cannot be loaded.
    """
    from training import check_targets

    def mergeable(adapter: Path, four_bit_modules: Sequence[str]) -> None:
        from export import require_mergeable

        try:
            require_mergeable(config.export.merge, base, adapter, four_bit_modules)
        except ArtifactError as error:
            said = error.message.replace(f"{adapter}/", "")
            hint = error.hint and error.hint.replace("--merge-base ", MERGE_BASE)
            raise ConfigError(
                f"training: the adapter could not be merged after the training: {said}", hint=hint
            ) from None

    is_merged = config.training.method.answers_prompts or bool(config.serving.pools)
    return check_targets(
        config.training,
        base,
        as_adapter=serves_adapter(config),
        require_mergeable=mergeable if is_merged else None,
    )
