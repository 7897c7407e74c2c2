"""The stage that ranks passages, of embedding models and rerankers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tuneline.core.artifact import Artifact
from tuneline.pipeline.run_config import RunConfig
from tuneline.pipeline.stage import ADAPTER, DATASET, RETRIEVAL, Line, Made, Stage
from tuneline.pipeline.stage_inputs import training_inputs


def ranked_stage(
    config: RunConfig, label: str, judge: Callable[[Line, Made, Path], Artifact]
) -> Stage:
    """Return the stage; `label` is the name of the trained model."""
    return Stage(
        RETRIEVAL, "Rank passages with base and tuned model", "evaluation", "retrieval",
        (config.evaluation, config.training), (DATASET, ADAPTER), judge,
        inputs=training_inputs, label=label, version=2,
    )  # fmt: skip
