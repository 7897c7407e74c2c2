"""A released run and its server in a cluster: the manifests, and the questions that prove it."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from k8s import Cluster, Manifests, open_tunnel, read_manifests, read_server_key
from tuneline.core.digests import short_digest
from tuneline.core.endpoint import Endpoint, read_key
from tuneline.core.errors import ArtifactError, ServerError, VerdictError
from tuneline.core.openai_client import openai_client
from tuneline.core.progress import logger
from tuneline.core.verdict import require_verdict
from tuneline.pipeline.deploy import render_run
from tuneline.pipeline.plan import current
from tuneline.pipeline.products.table import load_prompts, product_of
from tuneline.pipeline.released import find_release
from tuneline.pipeline.run_config import Run
from tuneline.pipeline.stage import DATASET, MODEL

ANSWER_S = 30.0

Check = Callable[[str], None]


def render_released(run: Run, release_dir: Path | None = None) -> Manifests:
    """Return the manifests of a run from its release, as `deploy render` writes them.

    Raises:
        VerdictError: The run has no release whose gates pass.
        TunelineError: As `render_run` does.
    """
    with tempfile.TemporaryDirectory(prefix="tuneline-deploy-") as folder:
        try:
            return read_manifests(render_run(run, Path(folder) / "tree", release_dir=release_dir))
        except VerdictError as error:
            raise VerdictError(error.message, hint=f"Try: {run.command('release')}") from None


def local_release(run: Run) -> str | None:
    """Return the digest of the run's release that may be deployed; None if there is none."""
    try:
        (model,) = current(run, MODEL)
        config = run.config.model_dump(mode="json")
        return find_release(run.dir, run.command("release"), model.digest, config)[0].digest
    except (ArtifactError, VerdictError) as error:
        logger.info("no local release: %s", error.message)
        return None


def require_digest(model_digest: str) -> Check:
    """Return a check that a server states the digest of a model; it needs no key."""

    def check(url: str) -> None:
        facts = _read_ready(url)
        if facts.get("digest") != model_digest:
            raise ServerError(
                f"the server serves {facts.get('digest') or 'a model without a digest'}; the "
                f"release is of {model_digest}",
                hint="Does another server have the same labels? "
                "Try: kubectl get pods -l app.kubernetes.io/part-of=tuneline",
            )
        logger.info("  the server states the model's digest %s", short_digest(model_digest))

    return check


def _read_ready(url: str) -> dict[str, Any]:
    """Return what the server states about itself at `/ready`."""
    # No proxy can reach a loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/ready", timeout=ANSWER_S) as response:
            found = json.loads(response.read(100_000))
    except urllib.error.HTTPError as error:
        raise ServerError(f"/ready: status {error.code}; expected the model's digest") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServerError(f"/ready: no answer: {error}") from None
    return found if isinstance(found, dict) else {}


def prove_pod(run: Run, manifests: Manifests, key: str | None) -> Check:
    """Return a check that a server is the released one: the digest that it states, its names, and
    some of its answers, by the openai client.

    Raises:
        NotAnArtifactError: The reference, or the evaluation of such a model, is stale.
    """
    product = product_of(run.config)
    model, truth = current(run, MODEL, product.known_by)
    states_digest = require_digest(manifests.model_digest)

    def check(url: str) -> None:
        states_digest(url)
        name = f"{run.config.name}@{short_digest(manifests.model_digest)}"
        endpoint = Endpoint(f"{url}/v1", name, key)
        with openai_client(endpoint, timeout_s=ANSWER_S) as client:
            names = [entry.id for entry in client.models.list()]
        if name not in names:
            raise ServerError(f"the server serves {', '.join(names)}; expected {name}")
        product.compare(run, model, truth, endpoint)

    return check


def find_key(cluster: Cluster, deployment: dict[str, Any], variable: str) -> str | None:
    """Return the API key: the environment variable's, else the one in the server's Secret."""
    return read_key(os.environ, variable) or read_server_key(cluster, deployment)


def compare_speeds(
    run: Run, cluster: Cluster, stable: str, key: str | None, out: Path
) -> Callable[[int], None]:
    """Return a check of one canary step: the canary is not slower than the stable run.

    Both are asked through a port-forward, in turns, with the run's scenarios and prompts. A verdict
    other than PASS raises its error. Each step writes an artifact below `out`.

    Raises:
        ArtifactError: `out` has reports already.
        DataError: No held-out row fits the load test.
    """
    from loadtest import compare_endpoints
    from tuneline.pipeline.served_stages import loadtest_config

    if any(out.glob("weight-*")):
        raise ArtifactError(
            f"{out}: has reports of an earlier canary", hint="Choose another --compare DIR."
        )
    (dataset,) = current(run, DATASET)
    prompts = load_prompts(run, dataset)

    def check(weight: int) -> None:
        with open_tunnel(cluster, stable) as a, open_tunnel(cluster, run.config.name) as b:
            compared = compare_endpoints(
                loadtest_config(run),
                Endpoint(f"{a.url}/v1", stable, key),
                Endpoint(f"{b.url}/v1", run.config.name, key),
                out / f"weight-{weight}",
                prompts=prompts,
            )
        require_verdict(compared)

    return check
