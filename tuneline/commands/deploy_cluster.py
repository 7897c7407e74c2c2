"""The commands that work on a cluster: diff, apply, status, canary, roll-back."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneline.commands.option_values import DEFAULT_KEY_ENV, open_run, refuse
from tuneline.commands.options import AsJson, KeyEnv, Overrides, ReleaseDir, RunFile, RunsDir
from tuneline.commands.printing import emit
from tuneline.core.errors import ConfigError, VerdictError
from tuneline.core.progress import logger
from tuneline.pipeline import DEFAULT_RUNS

if TYPE_CHECKING:
    from k8s import Cluster, Manifests, Plan
    from tuneline.pipeline.run_config import Run

RunOrTree = Annotated[
    Path,
    typer.Argument(
        metavar="RUN.yaml|DIR", help="A run, or the directory that `deploy render` wrote."
    ),
]
Context = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The kubeconfig's context; the current one by default."),
]
Namespace = Annotated[
    str | None, typer.Option(metavar="NAME", help="The namespace, in place of k8s.namespace.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
TimeoutS = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=1,
        metavar="SECONDS",
        help="How long the rollout may take; the Deployment's own deadline by default.",
    ),
]
ForceConflicts = Annotated[
    bool,
    typer.Option("--force-conflicts", help="Take over fields that another manager has set."),
]


def deploy_diff(
    target: RunOrTree,
    release: ReleaseDir = None,
    context: Context = None,
    namespace: Namespace = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Show what an apply would change in the cluster, by a dry run on the server.

    Exits with 0 if nothing would change, and with 6 if something would.
    """
    from k8s import open_cluster, plan_apply

    manifests = _open(target, overrides, runs_dir, namespace, release)
    cluster = open_cluster(manifests.namespace, context)
    # A conflict is an apply's concern; the difference is worth seeing all the same.
    plan = plan_apply(cluster, manifests.run, manifests.objects, force_conflicts=True)
    lines = plan.lines() or ["nothing would change"]
    emit(_plan_document(cluster, plan), [cluster.where, *lines], as_json)
    if plan.changes:
        raise typer.Exit(VerdictError.exit_code)


def deploy_apply(
    run_file: RunFile,
    release: ReleaseDir = None,
    context: Context = None,
    namespace: Namespace = None,
    yes: Yes = False,
    timeout_s: TimeoutS = None,
    force_conflicts: ForceConflicts = False,
    api_key_env: KeyEnv = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Roll a released run out, prove the server in the cluster, and roll back if it fails.

    Waits for the rollout, compares the digest that the server states with the release, and its
    answers with the reference. After a failure the earlier version runs again.
    """
    from k8s import apply_manifests, open_cluster
    from tuneline.pipeline.deployment import find_key, prove_pod

    run = _open_run(run_file, overrides, runs_dir, namespace)
    manifests = _render(run, release)
    cluster = open_cluster(manifests.namespace, context)
    plan = _plan(run, manifests, cluster, force_conflicts)
    key = find_key(cluster, manifests.deployment, api_key_env or DEFAULT_KEY_ENV)
    check = prove_pod(run, manifests, key)
    if not plan.is_deployed:
        _confirm(f"Apply to {cluster.where}?", yes)
    applied = apply_manifests(
        cluster, plan, check=check, timeout_s=timeout_s, force_conflicts=force_conflicts
    )
    emit(
        {"context": cluster.context, "namespace": cluster.namespace, **applied.model_dump()},
        [f"deployed and proven: {applied.words()}, {cluster.where}"],
        as_json,
    )


def _plan(run: Run, manifests: Manifests, cluster: Cluster, force_conflicts: bool) -> Plan:
    """Return the plan of an apply, after its changes were printed."""
    from k8s import plan_apply

    plan = plan_apply(cluster, run.config.name, manifests.objects, force_conflicts=force_conflicts)
    logger.info(cluster.where)
    for line in plan.lines():
        logger.info("  %s", line)
    return plan


def deploy_status(
    target: RunOrTree,
    context: Context = None,
    namespace: Namespace = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Show the release, the pods, the autoscaler and the revisions of a run in the cluster."""
    from k8s import open_cluster, read_state

    name, in_namespace, release = _identify(target, overrides, runs_dir, namespace)
    state = read_state(open_cluster(in_namespace, context), name, release())
    emit(state.model_dump(mode="json"), state.lines(), as_json)


def deploy_roll_back(
    target: RunOrTree,
    to: Annotated[
        int | None, typer.Option(metavar="REVISION", help="By default the proven one before.")
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    yes: Yes = False,
    timeout_s: TimeoutS = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Bring an earlier revision back: its pods, its configuration, its autoscaler and its route."""
    from k8s import find_earlier, open_cluster, roll_back_server
    from tuneline.pipeline.deployment import require_digest

    name, in_namespace, _ = _identify(target, overrides, runs_dir, namespace)
    cluster = open_cluster(in_namespace, context)
    earlier = find_earlier(cluster, name, to)
    logger.info("%s: back to %s", cluster.where, earlier.words())
    _confirm(f"Roll back in {cluster.where}?", yes)
    back = roll_back_server(
        cluster, name, earlier, check=require_digest(earlier.model_digest), timeout_s=timeout_s
    )
    emit(
        {"context": cluster.context, "namespace": cluster.namespace, **back.model_dump()},
        [f"rolled back to {back.words()}, {cluster.where}"],
        as_json,
    )


def deploy_canary(
    run_file: RunFile,
    weight: Annotated[
        int, typer.Option(min=0, max=100, help="Percent of the requests; 0 takes it back.")
    ],
    stable: Annotated[
        str | None, typer.Option(metavar="RUN", help="The run that has the route.")
    ] = None,
    hold_s: Annotated[
        float, typer.Option("--hold", min=0, metavar="SECONDS", help="Time of each weight.")
    ] = 60.0,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also compare speeds with the stable run; reports go there."
        ),
    ] = None,
    release: ReleaseDir = None,
    context: Context = None,
    namespace: Namespace = None,
    yes: Yes = False,
    timeout_s: TimeoutS = None,
    api_key_env: KeyEnv = None,
    overrides: Overrides = None,
    runs_dir: RunsDir = DEFAULT_RUNS,
    as_json: AsJson = False,
) -> None:
    """Roll a second run out, and give it a share of the first run's requests, step by step.

    A step is kept only if the canary's pods stay ready, its answers equal the reference's, and the
    Job of k8s.judge is complete. After a failure the share is 0 again.
    """
    from k8s import find_stable, open_cluster, set_weight

    run = _open_canary(run_file, overrides, runs_dir, namespace)
    name = run.config.name
    cluster = open_cluster(run.config.k8s.namespace, context)
    if weight == 0:
        refuse("with --weight 0", {"--compare": compare, "--release": release})
        first = find_stable(cluster, name, stable)
        _confirm(f"Take the canary's requests back in {cluster.where}?", yes)
        set_weight(cluster, first, name, 0)
        held = [0]
    else:
        manifests = _render(run, release)
        first = find_stable(cluster, name, stable)
        held = _raise_share(
            run, manifests, cluster, first, weight, hold_s, compare, api_key_env, yes, timeout_s
        )
    document = {"context": cluster.context, "namespace": cluster.namespace, "stable": first}
    emit(
        {**document, "canary": name, "weight": weight, "held": held},
        [f"canary {name}: weight {weight} of the requests of {first}, {cluster.where}"],
        as_json,
    )


def _raise_share(
    run: Run,
    manifests: Manifests,
    cluster: Cluster,
    stable: str,
    weight: int,
    hold_s: float,
    compare: Path | None,
    api_key_env: str | None,
    yes: bool,
    timeout_s: float | None,
) -> list[int]:
    """Roll the canary out without requests, give it its share, and return the weights that held."""
    from k8s import apply_manifests, read_share, require_names, set_weight, shift_route
    from tuneline.pipeline.deployment import find_key, prove_pod

    name = run.config.name
    require_names(cluster, stable, manifests)
    key = find_key(cluster, manifests.deployment, api_key_env or DEFAULT_KEY_ENV)
    check = _canary_check(run, manifests, cluster, stable, key, compare)
    plan = _plan(run, manifests, cluster, False)
    share = read_share(cluster, stable, name)
    words = f"the canary {weight} percent (now {share}) of the requests of {stable}"
    if not plan.is_deployed:
        _confirm(f"Apply to {cluster.where}, and give {words}?", yes)
    elif share != weight:
        _confirm(f"Give {words}, {cluster.where}?", yes)
    if share and not plan.is_deployed:
        logger.info("canary %s: weight 0 until its new version is proven", name)
        set_weight(cluster, stable, name, 0)
    apply_manifests(cluster, plan, check=prove_pod(run, manifests, key), timeout_s=timeout_s)
    return shift_route(cluster, stable, name, weight, hold_s=hold_s, check=check)


def _canary_check(
    run: Run,
    manifests: Manifests,
    cluster: Cluster,
    stable: str,
    key: str | None,
    compare: Path | None,
) -> Callable[[int], None]:
    """Return the check of one step: the answers, and on request the speed or the judge's Job."""
    from k8s import check_run, run_judge
    from tuneline.pipeline.deployment import compare_speeds, prove_pod

    proof = prove_pod(run, manifests, key)
    speeds = None if compare is None else compare_speeds(run, cluster, stable, key, compare)

    def check(weight: int) -> None:
        check_run(cluster, run.config.name, proof)
        if speeds is not None:
            speeds(weight)
        if any(item["kind"] == "Job" for item in manifests.judge):
            run_judge(cluster, manifests.judge)

    return check


def _open_canary(
    run_file: Path, overrides: list[str] | None, runs_dir: Path, namespace: str | None
) -> Run:
    """Return the run of a canary, without a route of its own.

    Raises:
        ConfigError: Its section `k8s` has no gateway.
    """
    run = _open_run(run_file, overrides, runs_dir, namespace)
    gateway = run.config.k8s.gateway
    if gateway is None:
        raise ConfigError(
            f"{run.path}: k8s.gateway: missing; a canary gets its requests from a gateway",
            hint="Give it the gateway of the first run: docs/deploy.md",
        )
    if gateway.route and gateway.canary is None:
        return _open_run(
            run_file, [*(overrides or ()), "k8s.gateway.route=false"], runs_dir, namespace
        )
    return run


def _open_run(
    run_file: Path, overrides: list[str] | None, runs_dir: Path, namespace: str | None
) -> Run:
    chosen = [] if namespace is None else [f"k8s.namespace={namespace}"]
    return open_run(run_file, [*(overrides or ()), *chosen], runs_dir)


def _render(run: Run, release: Path | None) -> Manifests:
    from tuneline.pipeline.deployment import render_released

    return render_released(run, release)


def _open(
    target: Path,
    overrides: list[str] | None,
    runs_dir: Path,
    namespace: str | None,
    release: Path | None,
) -> Manifests:
    """Return the manifests of a run or of a rendered directory."""
    if not target.is_dir():
        return _render(_open_run(target, overrides, runs_dir, namespace), release)
    from k8s import read_manifests

    refuse("with DIR", {"--set": overrides or None, "--release": release})
    manifests = read_manifests(target)
    if namespace not in (None, manifests.namespace):
        raise ConfigError(
            f"--namespace {namespace}: {target} is rendered for namespace {manifests.namespace}",
            hint=f"Try: tuneline deploy render RUN.yaml --out DIR --set k8s.namespace={namespace}",
        )
    return manifests


def _identify(
    target: Path, overrides: list[str] | None, runs_dir: Path, namespace: str | None
) -> tuple[str, str, Callable[[], str | None]]:
    """Return a run's name, its namespace, and a function that finds its local release."""
    if target.is_dir():
        manifests = _open(target, overrides, runs_dir, namespace, None)
        return manifests.run, manifests.namespace, lambda: manifests.release
    run = _open_run(target, overrides, runs_dir, namespace)

    def find() -> str | None:
        from tuneline.pipeline.deployment import local_release

        return local_release(run)

    return run.config.name, run.config.k8s.namespace, find


def _plan_document(cluster: Cluster, plan: Plan) -> dict[str, Any]:
    return {
        "context": cluster.context,
        "namespace": cluster.namespace,
        "has_changes": bool(plan.changes),
        "changes": [dataclasses.asdict(change) for change in plan.changes],
    }


def _confirm(question: str, yes: bool) -> None:
    """Ask on the terminal.

    Raises:
        ConfigError: The answer is no, or there is no terminal and no `--yes`.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Nobody can answer here; expected --yes")
    try:
        is_wanted = typer.confirm(question, err=True)
    except typer.Abort:  # Ctrl-D
        is_wanted = False
    if not is_wanted:
        raise ConfigError("nothing was changed")
