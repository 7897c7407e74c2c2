"""`tuneline deploy render`: a kustomize tree for one run, complete in itself.

    OUT/kustomization.yaml             kubectl apply -k OUT
    OUT/server.yaml                    image, arguments, environment, resources of this run
    OUT/load-test/kustomization.yaml   kubectl apply -k OUT/load-test
    OUT/load-test/job.yaml, run.yaml, prompts.jsonl
    OUT/adapters/...                   the adapters that the server should have, and their Job
    OUT/judge/...                      the same of the Job that judges a canary
    OUT/k8s/...                        copies of the base, the overlay and the components used
    OUT/render.json                    what was rendered and the digest of every file

The same inputs give the same bytes. Before a tree takes its name, the rules of `k8s/rules/` check
the objects that kubectl makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from k8s.config import PORT, DeployConfig
from k8s.render.adapters import write_adapters
from k8s.render.components.adapters import place_base
from k8s.render.components.scaling import limit_in_flight
from k8s.render.facts import Facts
from k8s.render.job import LoadTestJob, write_loadtest
from k8s.render.judge import write_judge
from k8s.render.output import check_rendered, new_tree
from k8s.render.server import write_server
from k8s.render.workloads.chart import write_chart
from k8s.render.workloads.write import write_workload
from k8s.rules.objects import flags
from tuneline.core.errors import ConfigError
from tuneline.core.progress import logger
from tuneline.core.secrets import is_secret_name

EXAMPLE_IMAGE = "registry.example.com/tuneline-server-{}:v0.32.0"


def render_manifests(
    facts: Facts,
    out: Path,
    *,
    served_args: Sequence[str],
    served_env: Mapping[str, str],
    loadtest: LoadTestJob | None = None,
    helm: bool = False,
) -> Path:
    """Write the manifests of one run to `out` and return it.

    Args:
        facts: The run, its section `k8s`, and what its release says.
        out: A directory that does not exist, or an earlier output of this function.
        served_args: All arguments of `vllm serve`: the model at `MODEL_DIR`, `--host` `HOST`,
            `--port` `PORT`, the names `[name, name@digest12]`, and what the run was proven with.
        served_env: Environment variables of the server; no secrets.
        loadtest: The load test; it needs `k8s.loadtest_image`.
        helm: Write a Helm chart in the place of the server's kustomization.

    Raises:
        ConfigError: Values are missing or do not fit together, or the manifests break a rule.
        ArtifactError: `out` exists and was not rendered, or was changed since.
        DiskFullError: The file system ran out of space.
    """
    config = facts.config
    _check_inputs(config, facts.name, served_env)
    _warn(facts)
    if config.autoscaling is not None:
        served_env = limit_in_flight(served_env, facts)
    if config.adapters is not None:
        served_env = place_base(served_env, facts)
    rendered = {
        "name": facts.name, "model_digest": facts.model_digest, "release": facts.release,
    }  # fmt: skip
    with new_tree(out, rendered) as tree:
        write_server(facts, served_args, served_env, tree)
        if config.workload != "deployment":
            write_workload(tree, config)
        targets = [tree]
        if config.loadtest_image is not None and loadtest is not None and loadtest.prompts:
            url = f"http://{facts.server}:{PORT}/v1"
            model = flags(served_args)["--served-model-name"][-1]
            write_loadtest(facts, loadtest, tree, url=url, model=model)
            targets.append(tree / "load-test")
            if config.judge is not None:
                write_judge(facts, loadtest, tree, model=model)
                targets.append(tree / "judge")
        if config.adapters is not None:
            write_adapters(facts, tree)
            targets.append(tree / "adapters")
        check_rendered(targets)
        if helm:
            write_chart(tree, facts)
    return out


def _check_inputs(config: DeployConfig, name: str, served_env: Mapping[str, str]) -> None:
    found = []
    if config.image is None:
        found.append(
            "k8s.image: missing; expected the image built from k8s/images/Dockerfile.server"
        )
    sources = (config.model_claim, config.model_image, config.model_hub, config.model_fetch)
    if all(source is None for source in sources):
        found.append(
            "k8s.model_claim, k8s.model_image: one is needed: the volume claim or the OCI image "
            "that holds the model, or else model_hub or model_fetch"
        )
    if not name[:1].isalpha():
        found.append(f"name: {name!r} begins with a digit, which no Kubernetes Service may")
    canary = config.gateway.canary if config.gateway is not None else None
    if canary is not None and canary.run == name:
        found.append(f"k8s.gateway.canary.run: {name!r} is this run; expected the name of another")
    if config.judge is not None and config.judge.stable == name:
        found.append(f"k8s.judge.stable: {name!r} is this run; expected the run that has the route")
    found += [
        f"serving: {key} is a secret; it comes from the Secret {config.secret_name}"
        for key in served_env
        if is_secret_name(key)
    ]
    if found:
        # Only what is missing: a problem of another key is not mended by it.
        tries = ["--set k8s.image=" + EXAMPLE_IMAGE.format(config.overlay)] * (config.image is None)
        tries += ["--set k8s.model_claim=models"] * all(source is None for source in sources)
        raise ConfigError(found, hint="Try: " + " ".join(tries) if tries else None)


def _warn(facts: Facts) -> None:
    """Log what renders and may still not work in the cluster."""
    config, capacity = facts.config, facts.capacity
    if config.autoscaling is not None and capacity is not None and capacity.loop == "closed":
        logger.warning(
            "k8s.autoscaling: its numbers come from %s; a closed loop sends no request before an "
            "answer and shows no queue, so measure an open loop",
            capacity.origin,
        )
    if config.gateway is not None and config.gateway.canary is not None:
        logger.info(
            "k8s.gateway.canary: render run %s with k8s.gateway and route: false, so that its "
            "NetworkPolicy lets the gateway in",
            config.gateway.canary.run,
        )
