"""`deploy render`: the manifests of a run, from a release whose gates pass."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

from k8s import Facts, LoadTestJob, read_capacity, render_manifests
from k8s.config import ADAPTERS_DIR, HOST, MODEL_DIR, PORT, RECORDING_DIR
from loadtest.longest import longest_s
from serving import describe_adapter, open_paths, plan_container
from tuneline.core.artifact import Artifact, open_artifact, verify_artifact
from tuneline.core.artifact_kinds import REPORT
from tuneline.core.errors import ConfigError, TamperedError
from tuneline.core.progress import logger
from tuneline.core.release import MODEL_SIGNATURE, Release
from tuneline.core.verdict import require_verdict
from tuneline.models.source import ModelSource, computed_dtype
from tuneline.pipeline.plan import current, plan
from tuneline.pipeline.products.table import load_prompts
from tuneline.pipeline.released import find_release
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.server import serves_adapter
from tuneline.pipeline.stage import DATASET, MODEL, PARITY_MERGED, PARITY_SERVED, REFERENCE
from tuneline.pipeline.stage_inputs import drafter, served_files
from tuneline.pipeline.stages import stage_names
from tuneline.release import check_agreement

PROOF_S = 1800
"""The time of a proof of answers, and of the pod's start."""
NUM_ROUNDS = 4
"""`tuneline loadtest compare` measures each server so many times."""


def render_run(
    run: Run,
    out: Path,
    *,
    release_dir: Path | None = None,
    allow_unreleased: bool = False,
    helm: bool = False,
) -> Path:
    """Write the kustomize tree that serves the run's merged model, and return its directory.

    Args:
        run: The run.
        out: The directory of the tree.
        release_dir: The release to render from; by default the newest of the run's model and
            server.
        allow_unreleased: Render without a release, with a mark on every object.
        helm: Write a Helm chart in the place of the server's kustomization.

    Raises:
        NotAnArtifactError: The model, its proof or the dataset is stale.
        VerdictError: The merged model is not the trained one, or has no release that passes.
        TamperedError: The model or its proof differs from its manifest, or the files of the release
            contradict one another.
        ConfigError: The section `k8s` lacks something, the manifests break a rule, or the run has
            named keys and no Secret for them.
        ArtifactError: `out` exists and was not rendered, or was changed since.
    """
    _require_renderable(run)
    scores = run.config.serving.pools
    proof = PARITY_SERVED if scores else PARITY_MERGED
    dataset, model, parity = current(run, DATASET, MODEL, proof)
    for artifact in (model, parity):
        verify_artifact(artifact)
    require_verdict(parity)
    released: Artifact | None = None
    release: Release | None = None
    if not allow_unreleased:
        own = run.config.model_dump(mode="json")
        released, release = find_release(
            run.dir, run.command("release"), model.digest, own, release_dir
        )
        check_agreement(released, release)
    source = ModelSource(run.config.name, model.path, model.digest, model.kind)
    if run.config.k8s.judge is not None:
        _require_judgeable(run, source)
    measured = _measured(run, release)
    args, env = plan_container(
        run.config.serving, source, model_dir=MODEL_DIR, host=HOST, port=PORT,
        adapters_dir=None if run.config.k8s.adapters is None else ADAPTERS_DIR,
        recording_dir=None if run.config.k8s.recording_claim is None else RECORDING_DIR,
    )  # fmt: skip
    facts = Facts(
        run.config.k8s,
        run.config.name,
        model.digest,
        capacity=None if measured is None else read_capacity(*measured),
        release=None if released is None else released.digest,
        model_size_bytes=model.size_bytes,
        waived=() if release is None else tuple(release.waived),
        signature=_signature(run, released),
        dtype=computed_dtype(run.config.serving.dtype, source),
        adapters=_desired_adapters(run),
        paths=("/v1", *open_paths(run.config.serving.routes)),
    )
    loadtest = _loadtest_job(run, dataset)
    return render_manifests(
        facts, out, served_args=args, served_env=env, loadtest=loadtest, helm=helm
    )


def _loadtest_job(run: Run, dataset: Artifact) -> LoadTestJob:
    longest = math.ceil(longest_s(run.config.loadtest))
    return LoadTestJob(
        _job_config(run), load_prompts(run, dataset), deadline_s=max(3600, longest),
        judge_deadline_s=PROOF_S + 2 * NUM_ROUNDS * longest,
    )  # fmt: skip


def _require_renderable(run: Run) -> None:
    """Raise ConfigError if the run has settings that the manifests do not carry."""
    serving = run.config.serving
    if serves_adapter(run.config):
        raise ConfigError(
            f"{run.path}: serving.mode: adapter; the manifests run the merged model",
            hint="Try: --set serving.mode=merged",
        )
    if serving.pools and run.config.k8s.judge is not None:
        raise ConfigError(
            f"{run.path}: k8s.judge: compares answers with a reference, and this model gives no "
            f"text (serving.routes: {', '.join(serving.routes)})",
            hint="Try: --set k8s.judge=null, and tuneline deploy canary RUN.yaml --compare DIR",
        )
    if serving.keys_file is not None and run.config.k8s.keys_secret_name is None:
        file, space = shlex.quote(str(run.resolve(serving.keys_file))), run.config.k8s.namespace
        raise ConfigError(
            f"{run.path}: serving.keys_file: {serving.keys_file} is a file of this machine; the "
            "pods read named keys from a Secret",
            hint=f"Try: kubectl create secret generic tuneline-keys -n {space} "
            f"--from-file=keys.toml={file}\n"
            "  and then: --set k8s.keys_secret_name=tuneline-keys\n"
            "  Or without named keys: --set serving.keys_file=null",
        )
    for name, path in served_files(run).items():
        raise ConfigError(
            f"{run.path}: serving.extra_args.{name}: {path} is a file of this machine, which the "
            "pods do not have",
            hint=f"Try: --set serving.extra_args.{name}=null",
        )
    if (found := drafter(run)) is not None:
        raise ConfigError(
            f"{run.path}: serving.extra_args.{found[0]}: {found[1]} is a folder of this machine, "
            "which the pods do not have",
            hint=f"Try: --set serving.extra_args.{found[0]}=null",
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


def _require_judgeable(run: Run, source: ModelSource) -> None:
    """Raise ConfigError if a Job without the model's weights cannot prove the server's answers."""
    from export import weight_tolerances

    (reference,) = current(run, REFERENCE)
    metrics = reference.manifest.metrics
    if metrics.get("chat_template_date") and not metrics.get("chat_template_date_variable"):
        reason = "the chat template writes today's date, so answers differ from the reference's"
    elif run.config.serving.parity.tolerances is not None:
        reason = "serving.parity.tolerances are the run's own, and the Job takes the defaults"
    elif weight_tolerances(source, computed_dtype(run.config.serving.dtype, source)) is not None:
        reason = "the weights are rounded, and the Job does not read the model"
    else:
        return
    raise ConfigError(
        f"{run.path}: k8s.judge: {reason}",
        hint="Try: --set k8s.judge=null   and: tuneline deploy canary NEXT.yaml --compare DIR",
    )


def _desired_adapters(run: Run) -> dict[str, Any]:
    """Return the list of `k8s.adapters`, with the digests of the artifacts here.

    Raises:
        ArtifactError: A folder is not an adapter, or has no reference next to it.
    """
    adapters, serving = run.config.k8s.adapters, run.config.serving.adapters
    if adapters is None or serving is None:
        return {}
    root = run.resolve(serving.root)
    return {
        name: describe_adapter(root / folder, root, ADAPTERS_DIR).model_dump()
        for name, folder in adapters.desired.items()
    }


def reference_to_copy(run: Run) -> tuple[Path, str] | None:
    """Return the folder of the reference and its path on `results_claim`, if a Job needs it."""
    if run.config.k8s.judge is None:
        return None
    (reference,) = current(run, REFERENCE)
    return reference.path, f"{run.config.name}-reference"


def _signature(run: Run, released: Artifact | None) -> dict[str, Any] | None:
    """Return the signature of the model, if the pods check one and the release has one."""
    if run.config.k8s.release_key is None or released is None:
        return None
    path = released.path / MODEL_SIGNATURE
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _measured(run: Run, release: Release | None) -> tuple[dict[str, Any], str] | None:
    """Return the load report and its digest, if the manifests need one and there is one.

    Raises:
        TamperedError: The load report differs from its manifest.
    """
    config = run.config.k8s
    if config.autoscaling is None and config.monitoring_namespace is None:
        return None
    report = _load_report(run, release)
    if report is None:
        return None
    verify_artifact(report)
    document = json.loads((report.path / REPORT).read_text(encoding="utf-8"))
    return document, report.digest


def _load_report(run: Run, release: Release | None) -> Artifact | None:
    """Return the load report that the release names, or else the run's current one."""
    (stage,) = stage_names(run, kinds=("load-report",))
    if release is not None:
        link = release.link(stage)
        path = None if link is None else run.dir / link.directory
    else:
        path = next(entry.path for entry in plan(run, (stage,)) if entry.stage.name == stage)
    if path is None or not path.exists():
        return None
    report = open_artifact(path, kind="load-report")
    if release is not None and link is not None and report.digest != link.digest:
        raise TamperedError(f"{path}: has digest {report.digest}; the release names {link.digest}")
    return report


def _job_config(run: Run) -> dict[str, Any]:
    """Return the run's configuration for the load test's Job, without `max_client_lag_s`.

    The Job has its own host and cores. A lag that the run allows for a client on the server's
    machine would hide that the Job's client is the bottleneck.
    """
    config = run.config.model_dump(mode="json")
    if config["loadtest"].pop("max_client_lag_s", None) is not None:
        logger.info("load test: the Job has a host of its own; max_client_lag_s is left out")
    return config
