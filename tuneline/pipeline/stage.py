"""The definition of a stage. The stages themselves are rows in `stages.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneline.core.artifact import Artifact, Input
from tuneline.core.config import StrictModel
from tuneline.core.endpoint import Endpoint
from tuneline.models.source import ModelSource
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.stage_inputs import base_input

Made = dict[str, Artifact]
"""Artifacts by the name of their stage."""

OnHeldout = Callable[[int, Mapping[str, float]], None]
"""Is called with a step and the figures of held-out rows after it."""

Group = Literal["data", "training", "evaluation", "export", "parity", "served"]
"""`parity` is of forms on disk; `served` are all stages that ask the running server."""

DATASET = "dataset"
ADAPTER = "adapter"
"""The training stage; a full fine-tuning makes a model."""
REFERENCE = "reference"
EVALUATION_BASE = "evaluation-base"
EVALUATION_TUNED = "evaluation-tuned"
MODEL = "model"
PREFERENCES = "evaluation-preferences"
RETRIEVAL = "evaluation-retrieval"
PARITY_MERGED = "parity-merged"
PARITY_SERVED = "parity-served"
EVALUATION_REPORT = "evaluation-report"
EVALUATION_SERVED = "evaluation-served"
FORGETTING = "forgetting"
LOADTEST = "loadtest"
STAGE_NAMES = (
    DATASET, ADAPTER, REFERENCE, EVALUATION_BASE, EVALUATION_TUNED, MODEL, PREFERENCES, RETRIEVAL,
    PARITY_MERGED, PARITY_SERVED, EVALUATION_REPORT, EVALUATION_SERVED, FORGETTING, LOADTEST,
)  # fmt: skip
"""All stages but those of export forms."""
SERVED_STAGES = (PARITY_SERVED, EVALUATION_SERVED, LOADTEST)
"""The stages that ask the running server."""


@dataclass(frozen=True)
class Line:
    """The objects that every step may use.

    Attributes:
        run: The run and its configuration.
        base: The base model.
        endpoint: Starts the server on first use; later stages of the same `up` share it.
        on_heldout: Is called with step and figures after each held-out measurement of the training.
    """

    run: Run
    base: ModelSource
    endpoint: Callable[[Made], Endpoint]
    on_heldout: OnHeldout | None = None


@dataclass(frozen=True)
class Stage:
    """One step of the line, with all that the line knows about it.

    Attributes:
        name: Also the first part of its artifact's directory name.
        title: The step in a few words, for people.
        group: The part of the line; commands run stages by group or by kind.
        kind: The kind of its artifact, a row of `KINDS` in `core.artifact_kinds`.
        sections: The configuration that decides its result, as far as its fields are keyed.
        needs: Names of the stages whose artifacts it reads.
        step: Writes the artifact.
        inputs: Returns what it reads besides other stages' artifacts.
        prepare: Checks of what it needs; they run before the first stage of the line runs.
        accepts: Checks of the dataset; they run as soon as it is there.
        version: Part of its key. Raise it when the same configuration and inputs give another
            result than before, so that every run makes the artifact again.
        label: Who gave the answers that it scores, for an evaluation.
    """

    name: str
    title: str
    group: Group
    kind: str
    sections: tuple[StrictModel, ...]
    needs: tuple[str, ...]
    step: Callable[[Line, Made, Path], Artifact]
    inputs: Callable[[Run, ModelSource], list[Input]] = base_input
    prepare: tuple[Callable[[Run], None], ...] = ()
    accepts: tuple[Callable[[Run, Artifact], None], ...] = ()
    version: int = 1
    label: str = ""
