"""Artifacts with only a digest, for the keys of stages that need them."""

from collections.abc import Sequence
from pathlib import Path

from tuneline.core.artifact import Artifact, Manifest
from tuneline.pipeline.stage import Made, Stage


def fake_made(stages: Sequence[Stage]) -> Made:
    return {
        stage.name: Artifact(
            Path(stage.name),
            Manifest(
                schema_version=1,
                kind=stage.kind,
                digest=f"sha256:{stage.name}",
                config={},
                inputs=[],
                files=[],
                environment={},
                metrics={},
                created_at="2026-01-01T00:00:00+00:00",
            ),
        )
        for stage in stages
    }
