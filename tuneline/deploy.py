"""`deploy render`: the manifests of a run, from artifacts whose proof holds."""

from __future__ import annotations

from pathlib import Path

from k8s.render import HOST, MODEL_DIR, PORT, render
from serving.command import artifact_facts, served_names, server_args, server_env
from tuneline.config import Run
from tuneline.core.artifact import verify_artifact
from tuneline.core.errors import ConfigError
from tuneline.core.model_source import ModelSource
from tuneline.pipeline import current, heldout_prompts, require_verdict


def render_run(run: Run, out: Path) -> Path:
    """Write the kustomize tree that serves the run's merged model.

    Raises:
        NotAnArtifactError: The model, its parity or the dataset is stale.
        VerdictError: The merged model is not the trained one.
        TamperedError: The model or its parity differs from its manifest.
        ConfigError: The section `k8s` lacks something, or the manifests break a rule.
        ArtifactError: `out` exists and was not rendered, or was changed since.
    """
    serving = run.config.serving
    if serving.mode == "adapter":
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
    dataset, model, parity = current(run, "dataset", "model", "parity-merged")
    for artifact in (model, parity):
        verify_artifact(artifact)
    require_verdict(parity)
    source = ModelSource(run.config.name, model.path, model.digest, model.kind)
    return render(
        run.config.k8s,
        name=run.config.name,
        model_digest=model.digest,
        served_args=server_args(
            serving,
            model=MODEL_DIR,
            adapter=None,
            served_names=served_names(run.config.name, model.digest),
            host=HOST,
            port=PORT,
        ),
        served_env=server_env(serving, artifact_facts(source, None, run.config.name)),
        out=out,
        run_config=run.config.model_dump(mode="json"),
        prompts=heldout_prompts(dataset),
    )
