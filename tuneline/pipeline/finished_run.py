"""The model of a finished run, for commands outside the line: serve, chat, more load tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from loadtest.config import LoadTestConfig
from tuneline.core.artifact import Input, canonical_digest, open_artifact, verify_artifact
from tuneline.core.config import keyed_values
from tuneline.core.endpoint import Endpoint
from tuneline.core.messages import ChatPrompt
from tuneline.pipeline.plan import current
from tuneline.pipeline.products.table import load_prompts
from tuneline.pipeline.run_config import Run, resolve_base
from tuneline.pipeline.served_stages import loadtest_config
from tuneline.pipeline.server import LazyServer, Served, served, served_stage
from tuneline.pipeline.stage import DATASET, Made
from tuneline.pipeline.stage_inputs import served_inputs
from tuneline.pipeline.up import lock_run


@dataclass(frozen=True)
class LoadTarget:
    """An endpoint and what a load test sends to it."""

    config: LoadTestConfig
    endpoint: Endpoint
    prompts: list[ChatPrompt]
    inputs: list[Input]
    server_key: str
    """Names the server with its settings: figures of another one cannot be continued."""


def served_by_run(run: Run) -> Served:
    """Return what a finished run serves; `check_served` compares its files with the manifest.

    Raises:
        NotAnArtifactError: The served artifact is stale.
    """
    stage = served_stage(run.config)
    (artifact,) = current(run, stage)
    return served(run, resolve_base(run, download=True), {stage: artifact})


def check_served(served: Served) -> None:
    """Read every byte of the artifact that a run serves.

    Raises:
        TamperedError: The artifact differs from its manifest.
    """
    verify_artifact(served.adapter or open_artifact(served.model.path))


@contextlib.contextmanager
def serve_for_loadtest(run: Run) -> Iterator[LoadTarget]:
    """Serve a finished run's model for as long as the block lasts.

    Raises:
        NotAnArtifactError: The dataset or the served artifact is stale.
        TamperedError: One of them differs from its manifest.
        ServerError: The server does not start.
    """
    made = checked(run, DATASET, served_stage(run.config))
    base = resolve_base(run, download=True)
    files = [entry.digest for entry in served_inputs(run, base)[1:]]
    with ExitStack() as stack:
        stack.enter_context(lock_run(run))
        yield LoadTarget(
            loadtest_config(run),
            LazyServer(run, base, stack).endpoint(made),
            load_prompts(run, made[DATASET]),
            served(run, base, made).inputs,
            canonical_digest([keyed_values(run.config.serving), files]),
        )


def checked(run: Run, *names: str) -> Made:
    """Return artifacts of a finished run, each compared with its manifest.

    Raises:
        NotAnArtifactError: An artifact is stale.
        TamperedError: An artifact differs from its manifest.
    """
    made = dict(zip(names, current(run, *names), strict=True))
    for artifact in made.values():
        verify_artifact(artifact)
    return made
