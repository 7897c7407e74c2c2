"""`deploy render`: the manifests of a run, from artifacts whose proof holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from k8s import render_manifests
from k8s.config import HOST, MODEL_DIR, PORT
from loadtest.config import longest_s
from serving import plan_container
from tuneline.core.artifact import verify_artifact
from tuneline.core.dataset import heldout_prompts
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger
from tuneline.core.verdict import require_verdict
from tuneline.models.source import ModelSource
from tuneline.pipeline.plan import current
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.server import serves_adapter
from tuneline.pipeline.stage import DATASET, MODEL, PARITY_MERGED


def render_run(run: Run, out: Path) -> Path:
    """Write the kustomize tree that serves the run's merged model, and return its directory.

    Raises:
        NotAnArtifactError: The model, its parity or the dataset is stale.
        VerdictError: The merged model is not the trained one.
        TamperedError: The model or its parity differs from its manifest.
        ConfigError: The section `k8s` lacks something, or the manifests break a rule.
        ArtifactError: `out` exists and was not rendered, or was changed since.
    """
    serving = run.config.serving
    if serves_adapter(run.config):
        raise ConfigError(
            f"{run.path}: serving.mode: adapter; the manifests run the merged model",
            hint="Try: --set serving.mode=merged",
        )
    workload = run.config.loadtest.workload
    if workload.path is not None:
        raise ConfigError(
            f"{run.path}: loadtest.workload.path: {workload.path}; the Job's ConfigMap holds the "
            "run's own prompts and no such file",
            hint="Try: --set loadtest.workload.source=prompts --set loadtest.workload.path=null",
        )
    num_scenarios = len(run.config.loadtest.scenarios)
    if run.config.k8s.load_pods > 1 and num_scenarios != 1:
        raise ConfigError(
            f"{run.path}: k8s.load_pods: {run.config.k8s.load_pods}: several load pods run one "
            f"scenario; loadtest.scenarios holds {num_scenarios}",
            hint="Leave one of them, or set k8s.load_pods to 1.",
        )
    dataset, model, parity = current(run, DATASET, MODEL, PARITY_MERGED)
    for artifact in (model, parity):
        verify_artifact(artifact)
    require_verdict(parity)
    source = ModelSource(run.config.name, model.path, model.digest, model.kind)
    args, env = plan_container(serving, source, model_dir=MODEL_DIR, host=HOST, port=PORT)
    return render_manifests(
        run.config.k8s,
        name=run.config.name,
        model_digest=model.digest,
        served_args=args,
        served_env=env,
        out=out,
        run_config=_job_config(run),
        prompts=heldout_prompts(dataset),
        loadtest_deadline_s=max(3600, math.ceil(longest_s(run.config.loadtest))),
    )


def _job_config(run: Run) -> dict[str, Any]:
    """Return the run's configuration for the load test's Job, without `max_client_lag_s`.

    The Job has its own host and cores. A lag that the run allows for a client on the server's
    machine would hide that the Job's client is the bottleneck.
    """
    config = run.config.model_dump(mode="json")
    if config["loadtest"].pop("max_client_lag_s", None) is not None:
        logger.info("load test: the Job has a host of its own; max_client_lag_s is left out")
    return config
